"""What a forward computes to log it is no reason to stay; what it computes weights from, or runs elsewhere, is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.errors import StructureError
from halpiee.structure import macs, shrink, trace, verify

from .corners import Net

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def net(log: Callable[[Any, Tensor], Any], **parts: Any) -> Net:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        log(m, x)
        return m.h(m.b(x).mean((2, 3)))

    torch.manual_seed(0)
    modules = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 6, 3), "h": nn.Linear(6, 5)} | parts
    return Net(forward, **modules).eval()


LOGS: dict[str, Callable[[Any, Tensor], Any]] = {
    "mean": lambda m, x: x.mean(),
    "std": lambda m, x: x.std((1, 2, 3)),
    "norm of a weight": lambda m, x: m.a.weight.norm() + m.b.weight.abs().max(),
    "softmax": lambda m, x: x.softmax(1).amax(1).sum(),
    "first channels": lambda m, x: x[:, :3].flatten(1),
    "histogram": lambda m, x: torch.histc(x.detach(), 10),
    "text": lambda m, x: str(x.mean()),
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_what_feeds_no_output_freezes_nothing(log: Callable[[Any, Tensor], Any]) -> None:
    model = net(log)
    structure = trace(model, X)
    assert [g.name for g in structure.prunable] == ["a", "b"]
    assert verify(model, structure, {"a": torch.arange(8) > 2, "b": torch.arange(6) > 1}, X) < 1e-5


def test_a_hook_that_logs_freezes_nothing() -> None:
    model = net(lambda m, x: None)
    model.a.register_forward_hook(lambda m, i, o: print(o.mean() + model.a.weight.norm()))
    assert [g.name for g in trace(model, X).prunable] == ["a", "b"]


def test_a_layer_that_feeds_no_output_is_cut_with_the_channels_that_it_reads() -> None:
    """It still runs in the compact network, which would fail on a weight of the old width."""
    model = net(lambda m, x: m.probe(x).softmax(1), probe=nn.Conv2d(8, 4, 1))
    structure = trace(model, X)
    compact: Any = shrink(model, structure, {"a": torch.arange(8) > 2})
    assert structure.by_name["a"].prunable
    assert compact.probe.weight.shape == (4, 5, 1, 1)
    assert compact(*X).shape == (2, 5)


def test_a_mean_over_channels_that_feeds_an_output_stays() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        return m.h(m.b(x * x.mean()).mean((2, 3)))

    model = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), h=nn.Linear(6, 5))
    assert [g.name for g in trace(model, X).prunable] == ["b"]


class Standardised(nn.Conv2d):
    """Weight standardisation as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class ByVariance(nn.Conv2d):
    """Standardised by ``var_mean``, as BiT's authors wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - m) / torch.sqrt(v + 1e-6), self.bias)


class ByRoot(nn.Conv2d):
    """Standardised by two averages and a product with one over a root."""

    def forward(self, x: Tensor) -> Tensor:
        m = self.weight.mean((1, 2, 3), keepdim=True)
        v = self.weight.var((1, 2, 3), unbiased=False, keepdim=True)
        return F.conv2d(x, (self.weight - m) * (v + 1e-6).rsqrt(), self.bias)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kind", [Standardised, ByVariance, ByRoot])
def test_a_standardised_weight_is_cut_and_standardised_over_the_kept_inputs(
    kind: type[nn.Conv2d], kernel: int
) -> None:
    model = net(lambda m, x: None, a=kind(3, 8, kernel), b=kind(8, 6, kernel))
    structure = trace(model, X)
    assert [layer.name for layer in structure.layers] == ["a", "b", "h"]
    assert [g.name for g in structure.prunable] == ["a", "b"]
    inner, outer = torch.arange(8) > 2, torch.arange(6) % 2 == 0
    assert verify(model, structure, {"a": inner, "b": outer}, X) < 1e-5
    compact: Any = shrink(model, structure, {"a": inner, "b": outer})
    torch.testing.assert_close(compact.b.weight, model.b.weight[outer][:, inner])
    rows = model.b.weight[outer][:, inner].flatten(1)
    by_hand = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    x = torch.randn(1, 5, 8, 8)
    want = F.conv2d(x, by_hand.view(3, 5, kernel, kernel), model.b.bias[outer])
    torch.testing.assert_close(compact.b(x), want)


def test_a_weight_standardised_over_its_rows_keeps_them_for_a_reason() -> None:
    class Columns(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = F.batch_norm(self.weight.flatten(1), None, None, training=True).view_as(self.weight)
            return F.conv2d(x, w, self.bias)

    structure = trace(net(lambda m, x: None, b=Columns(8, 6, 3)), X)
    assert structure.by_name["b"].reason == "native_batch_norm in b of a weight over its channels"


@pytest.mark.parametrize("rows", [1, 2])
def test_an_average_of_a_weight_that_is_no_norms_keeps_its_inputs_for_a_reason(rows: int) -> None:
    class Gated(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean = self.weight.mean(tuple(range(2 - rows, 4)), keepdim=True)
            return F.conv2d(x, self.weight * torch.sigmoid(mean), self.bias)

    structure = trace(net(lambda m, x: None, b=Gated(8, 6, 3)), X)
    assert str(structure.by_name["a"].reason).startswith("mean in b over channels")
    assert structure.by_name["b"].prunable == (rows == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "nf_resnet50"])
def test_networks_with_standardised_weights_are_cut_exactly(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)  # the last layers begin as 0
    x = (torch.randn(1, 3, 64, 64),)
    structure = trace(model, x)
    assert [g.name for g in structure.groups if not g.prunable] == ["input", "head.fc"]
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in structure.prunable}
    assert verify(model, structure, keep, x) < 1e-4


def test_a_layer_whose_weight_an_unknown_op_computes_is_found_and_stays_for_a_reason() -> None:
    class Quantised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = torch.fake_quantize_per_tensor_affine(self.weight, 0.1, 0, -128, 127)
            return F.conv2d(x, w, self.bias)

    class QuantisedLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(
                x, torch.fake_quantize_per_tensor_affine(self.weight, 0.1, 0, -128, 127), self.bias
            )

    class Normed(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, F.layer_norm(self.weight, self.weight.shape[1:]), self.bias)

    normed = trace(net(lambda m, x: None, b=Normed(8, 6, 3)), X)
    assert macs(normed)["b"] == 8 * 6 * 9 * 16
    assert normed.by_name["b"].reason == "convolution in b with a weight that native_layer_norm in b computes"

    model = net(lambda m, x: None, b=Quantised(8, 6, 3), h=QuantisedLinear(6, 5))
    structure = trace(model, X)
    assert [layer.name for layer in structure.layers] == ["a", "b", "h"]
    assert not structure.prunable
    assert "convolution in b with a weight that fake_quantize" in str(structure.by_name["a"].reason)
    assert "fake_quantize" in str(structure.by_name["b"].reason)


def test_a_copy_that_runs_the_models_own_modules_is_refused() -> None:
    model: Any = net(lambda m, x: None)
    model.forward = lambda x: model.h(model.b(model.a(x)).mean((2, 3)))
    with pytest.raises(StructureError, match=r"computes with the model's own parameter 'a\.weight'"):
        trace(model, X)


def test_a_model_with_weights_of_which_no_layer_is_found_is_refused() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(StructureError, match="no layer was found in Unread, though it has 1 weights"):
        trace(Unread(), X)


@pytest.mark.parametrize(
    "log", [lambda m, x: x.detach().cpu().numpy(), lambda m, x: f"{x[0, 0, 0, 0]:.3f}"], ids=["array", "text"]
)
def test_a_forward_that_makes_arrays_and_texts_of_its_tensors_is_traced(
    log: Callable[[Any, Tensor], Any],
) -> None:
    assert "b" in [g.name for g in trace(net(log), X).prunable]


def test_channels_that_python_reads_as_an_array_and_goes_on_with_stay() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        return m.h(m.b(x * float(x.detach().numpy().mean())).mean((2, 3)))

    model = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), h=nn.Linear(6, 5))
    structure = trace(model, X)
    assert [g.name for g in structure.prunable] == ["b"]
    assert structure.by_name["a"].reason == "numpy() in Python"
