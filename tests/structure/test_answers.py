"""What a forward reads of its tensors in Python keeps channels where it feeds an output, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halpiee.structure import trace, verify

from .corners import Net

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
KEEP = {"a": torch.arange(8) > 2, "b": torch.arange(6) > 1}


def net(read: Callable[[Any, Tensor], Tensor | None]) -> Net:
    """A convolution a whose output is read, and replaced where ``read`` returns a tensor; b; a head."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        found = read(m, x)
        return m.h(m.b(x if found is None else found).mean((2, 3)))

    torch.manual_seed(0)
    return Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), h=nn.Linear(6, 5)).eval()


IDLE: dict[str, str] = {
    "item": "x.mean().item()",
    "float": "float(x.mean().detach())",
    "finite": "assert torch.isfinite(x).all()",
    "text": "f'{x.mean():.3f}'",
    "print": "print(x, x.mean())",
    "raise": "if x.isnan().any(): raise ValueError('nan')",
    "log": "if x.isnan().any(): print('nan', x.max().item(), f'{x.min():.2f}')",
    "limit": "if x.abs().max().item() > 1e4: raise RuntimeError('diverged')",
    "numpy": "x.detach().cpu().numpy().mean()",
    "asarray": "np.asarray(x.detach())",
    "finite array": "assert np.isfinite(x.detach().numpy()).all()",
    "list": "m.__dict__.setdefault('log', []).append(x.mean((0, 2, 3)).tolist())",
    "tensors in a list": "m.__dict__.setdefault('log', []).append(x.detach())",
    "equal": "torch.equal(x, x)",
    "allclose": "assert torch.allclose(x, x)",
    "part": "print(x[x > 0].mean().item())",
    "unique": "len(x.unique())",
    "histogram": "torch.histc(x, 5).numpy().argmax()",
    "tensor of it": "m.last = torch.tensor(x.mean().item())",
    "two questions in a line": "assert not x.isnan().any() and x.min() >= 0",
    "numpy's histogram": "np.histogram(x.detach().numpy(), bins=4)",
    "normalised in place": "y = x.detach().clone(); y.sub_(y.min()).div_(y.max()); print(y.mean().item())",
    "number from the width": "print((x.sum() / x.shape[1]).item())",
    "order": "print('up' if x[0].mean().item() > x[1].mean().item() else 'down')",
}
STEERS: dict[str, str] = {
    "two questions in a line": "return x * 2 if x.isnan().any() or x.min() < 0 else x",
    "array of numpy's checks": "return x * float(np.histogram(x.detach().numpy(), bins=4)[1][2])",
    "in place into what counts": "y = x.clone(); y.mul_(y.amax()); return y",
    "in place into a view": "y = x.clone(); y[:, :, :2].sub_(x.amax()); return y",
    "factor": "return x * float(x.mean().detach())",
    "branch": "if x.mean().item() > 0.2: return x * 2",
    "branch far away": "if x.mean().item() > 1000: return x * 2",
    "truth": "if x.isnan().any(): return torch.nan_to_num(x)",
    "order": "if x[0].mean().item() > x.max().item(): return x * 2",
    "array changed in place": "a = x.detach().numpy(); a[a > 1] = 1",
    "from array": "return torch.from_numpy(x.detach().numpy() * 2)",
    "tensor of a number": "return x * torch.tensor(x.mean().item())",
    "tensor of a list": "return x * torch.tensor(x.mean((0, 2, 3)).tolist())[:, None, None]",
    "truths in a list": "if (x.mean((0, 2, 3)) > 1000).tolist()[3]: return x * 2",
    "route": "return [x, x * 2, x * 3][int(x.mean((0, 2, 3)).argmax()) % 3]",
    "loop": "n = x.abs().max().item()\n  while n > 1: x, n = x / 2, n / 2\n  return x",
    "next forward": "s = m.__dict__.get('s', 1.0); m.s = x.std().item(); return x / s",
    "element": "return x * x[0, 0, 0, 0].item()",
    "checked first": "k = x.mean().item(); assert k < 1; return x * 2 if k > 0.5 else x",
    "only checked": "k = int(x[:, :2].amax() * 0) + 2\n  assert k in (1, 2)\n  return x * k * x.mean()",
}


def written(code: str) -> Callable[[Any, Tensor], Tensor | None]:
    space: dict[str, Any] = {"torch": torch, "np": np, "__name__": __name__}
    exec(f"def read(m, x):\n  {code}", space)
    found: Callable[[Any, Tensor], Tensor | None] = space["read"]
    return found


@pytest.mark.parametrize("code", IDLE.values(), ids=IDLE)
def test_what_python_reads_and_feeds_no_output_freezes_nothing(code: str) -> None:
    model = net(written(code))
    before = model(*X)
    structure = trace(model, X)
    assert [g.name for g in structure.prunable] == ["a", "b"]
    assert verify(model, structure, KEEP, X) < 1e-5
    torch.testing.assert_close(model(*X), before, rtol=0, atol=0)


@pytest.mark.parametrize("code", STEERS.values(), ids=STEERS)
def test_channels_whose_values_python_goes_on_with_stay_for_a_reason(code: str) -> None:
    structure = trace(net(written(code)), X)
    assert [g.name for g in structure.prunable] == ["b"]
    assert structure.by_name["a"].reason


def test_a_hook_that_reads_leaves_nothing_behind_and_prints_no_alarm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept: list[Any] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not torch.isfinite(output).all():
            print("alarm")
        kept.append((output.detach().mean().item(), output.detach().cpu().numpy(), output.detach()))

    model = net(lambda m, x: None)
    for part in (model.a, model.b):
        part.register_forward_hook(hook)
    assert [g.name for g in trace(model, X).prunable] == ["a", "b"]
    assert kept == []
    assert "alarm" not in capsys.readouterr().out
    model(*X)
    assert [type(x) for x in kept[0]] == [float, np.ndarray, Tensor]
    assert kept[0][0] == pytest.approx(float(kept[0][1].mean()))


def test_what_is_logged_in_training_alone_freezes_nothing() -> None:
    class Logged(Net):
        def forward(self, *inputs: Tensor) -> Any:
            out = super().forward(*inputs)
            if self.training:
                self.loss = float(out.square().mean())
            return out

    def forward(m: Any, x: Tensor) -> Any:
        return m.h(m.b(m.a(x).relu()).mean((2, 3)))

    model = Logged(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), h=nn.Linear(6, 5))
    assert [g.name for g in trace(model, X).prunable] == ["a", "b"]
