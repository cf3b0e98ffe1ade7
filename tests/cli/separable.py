"""A network of separable convolutions small enough to be traced in an instant, named ``separable:build`` by tests."""

from __future__ import annotations

from torch import Tensor, nn


class Separable(nn.Module):
    """conv(3→8), separable convolutions to 16, 32, 32 and 64 channels, mean, fc; at width 0.25, the default."""

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        c_in = int(32 * width)
        layers: list[nn.Module] = [
            nn.Conv2d(3, c_in, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
        ]
        for base, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
            c_out = int(base * width)
            layers += [nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in)]
            layers += [nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            c_in = c_out
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return y


def build(width: float = 0.25, num_classes: int = 10) -> nn.Module:
    return Separable(width, num_classes)
