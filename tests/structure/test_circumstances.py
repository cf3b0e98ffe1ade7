"""Devices, types, modes, nested inputs and outputs, compilers; and models that are refused before anything runs."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from halpiee.errors import StructureError
from halpiee.structure import relative_error, shrink, trace, verify

from . import nets


class Nested(nn.Module):
    """Takes a dict of a list, returns a dict of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, given: dict[str, list[Tensor]]) -> dict[str, Any]:
        y = torch.sigmoid(self.a(given["x"][0]) + self.a(given["x"][1]))
        return {"both": (self.b(y), [self.c(y)])}


class RootMeanSquare(nn.Module):
    """A norm over channels written by hand: mean of squares over the width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight)


class Choosing(nn.Module):
    """Takes another path by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x)) if bool((x == 1).all()) else self.c(x)


def test_nested_inputs_and_outputs_are_walked() -> None:
    model = nets.randomise(Nested()).eval()
    inputs = ({"x": [torch.randn(2, 3), torch.randn(2, 3)]},)
    structure = trace(model, inputs)
    assert [g.name for g in structure.prunable] == ["a"]
    assert verify(model, structure, nets.random_keep(structure), inputs) <= 1e-5


def test_a_norm_over_channels_written_by_hand_is_cut_and_not_trained_with() -> None:
    model = nets.randomise(RootMeanSquare()).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    structure = trace(model, (x,))
    assert (structure.by_name["a"].prunable, structure.by_name["a"].trainable) == (True, False)
    keep = torch.arange(8) > 2
    y = F.linear(x, model.a.weight[keep], model.a.bias[keep])
    expected = F.linear(F.rms_norm(y, (5,), model.weight[keep], 1e-6), model.b.weight[:, keep], model.b.bias)
    torch.testing.assert_close(shrink(model, structure, {"a": keep})(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_groups_do_not_depend_on_the_type(dtype: torch.dtype) -> None:
    x = torch.zeros(nets.IMAGE)
    assert trace(nets.Concat().to(dtype), (x.to(dtype),)).groups == trace(nets.Concat(), (x,)).groups


def test_a_model_without_memory_is_traced_and_cut_without_any() -> None:
    x = torch.zeros(nets.IMAGE)
    model = nets.Residual().to("meta")
    structure = trace(model, (x.to("meta"),))
    assert structure.groups == trace(nets.Residual(), (x,)).groups
    compact: Any = shrink(model, structure, {"stem": torch.arange(8) < 3})
    assert compact.stem.weight.shape[0] == 3
    assert compact.stem.weight.device.type == "meta"


def test_train_mode_and_its_statistics_stay_as_they_were() -> None:
    model = nets.randomise(nets.Residual()).train()
    before = copy.deepcopy(model.state_dict())
    structure = trace(model, (torch.ones(nets.IMAGE),))
    assert structure.groups == trace(copy.deepcopy(model).eval(), (torch.ones(nets.IMAGE),)).groups
    assert model.training
    assert shrink(model, structure, nets.random_keep(structure)).training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("build", [nets.Residual, nets.Grouped, nets.Shuffle, nets.Gate])
def test_compiled_exported_copied_and_reloaded_networks_compute_the_same(build: Any) -> None:
    model = nets.randomise(build()).eval()
    x = torch.randn(nets.IMAGE)
    structure = trace(model, (x,))
    compact = shrink(model, structure, nets.random_keep(structure))
    other = copy.deepcopy(compact)
    other.load_state_dict(compact.state_dict())
    with torch.no_grad():
        expected = compact(x)
        assert torch.equal(other(x), expected)
        assert relative_error(torch.compile(compact, backend="eager")(x), expected) <= 1e-6
        assert relative_error(torch.export.export(compact, (x,)).module()(x), expected) <= 1e-6


def test_a_path_that_hangs_on_values_is_refused() -> None:
    with pytest.raises(StructureError, match="the forward of Choosing takes another path for other inputs"):
        trace(Choosing(), (torch.ones(2, 3),))


@pytest.mark.parametrize("kind", ["heads", "windows", "group norm", "empty branch"])
def test_networks_with_forwards_of_their_own_compile_export_and_copy_too(kind: str) -> None:
    shapes = {"heads": (2, 6, 3), "windows": (2, 3, 16, 16)}
    x = torch.randn(shapes.get(kind, nets.IMAGE), generator=torch.Generator().manual_seed(0))
    vanish = False
    if kind == "heads":
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        model: nn.Module = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))
    elif kind == "windows":
        swin = pytest.importorskip("torchvision.models.swin_transformer")
        model = swin.SwinTransformer([2, 2], 8, [2], [4], [4, 4], stochastic_depth_prob=0.0, num_classes=3)
    else:
        model = nets.GroupNormed() if kind == "group norm" else nets.Residual()
        vanish = kind == "empty branch"
    model = nets.randomise(model).eval()
    structure = trace(model, (x,), vanish=vanish)
    keep = nets.random_keep(structure)
    if vanish:
        keep["conv1"] = torch.zeros(6, dtype=torch.bool)
    compact = shrink(model, structure, keep)
    other = copy.deepcopy(compact)
    other.load_state_dict(compact.state_dict())
    with torch.no_grad():
        expected = compact(x)
        assert torch.equal(other(x), expected)
        assert relative_error(torch.compile(compact, backend="eager")(x), expected) <= 1e-5
        assert relative_error(torch.export.export(compact, (x,)).module()(x), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_cut_as_float32_is(dtype: torch.dtype) -> None:
    x = torch.randn(nets.IMAGE, generator=torch.Generator().manual_seed(0))
    model = nets.randomise(nets.Concat()).eval()
    typed = copy.deepcopy(model).to(dtype)
    structure = trace(typed, (x.to(dtype),))
    keep = nets.random_keep(structure)
    compact = shrink(typed, structure, keep)
    assert {p.dtype for p in compact.parameters()} == {dtype}
    wide = shrink(model, trace(model, (x,)), keep)
    for name, tensor in compact.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name].to(tensor.dtype))


def test_under_autocast_a_network_is_traced_cut_and_checked() -> None:
    model = nets.randomise(nets.Gate()).eval()
    x = torch.randn(nets.IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        structure = trace(model, (x,))
        error = verify(model, structure, nets.random_keep(structure), (x,), tolerance=0.05)
    assert structure.groups == trace(model, (x,)).groups
    assert error <= 0.05  # eight bits of mantissa


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (
            nn.utils.weight_norm,
            "computes its weight from other tensors before each forward .*remove_weight_norm",
        ),
        (nn.utils.spectral_norm, r"\(SpectralNorm\); call torch.nn.utils.remove_spectral_norm first"),
        (
            lambda m: prune.random_unstructured(m, "weight", amount=0.5),  # type: ignore[no-untyped-call]
            r"\(RandomUnstructured\); call torch.nn.utils.prune.remove first",
        ),
        (nn.utils.parametrizations.orthogonal, "is parametrised, its weight is computed from other tensors"),
    ],
    ids=["weight norm", "spectral norm", "mask", "parametrised"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_weight_that_is_computed_before_each_forward_is_refused(spoil: Any, found: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    spoil(model[0])
    with pytest.raises(StructureError, match="the module '0' .*" + found):
        trace(model, (torch.ones(2, 3),))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_script_is_refused() -> None:
    script = torch.jit.script(nn.Linear(3, 4))
    with pytest.raises(StructureError, match="the module '0' is compiled to TorchScript"):
        trace(nn.Sequential(script), (torch.ones(2, 3),))


def test_a_parameter_that_is_no_plain_tensor_is_refused() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight = nn.Parameter(torch.ones(4, 3).as_subclass(Packed))
    with pytest.raises(StructureError, match="the parameter 'weight' of '0' is a Packed, not a plain tensor"):
        trace(model, (torch.ones(2, 3),))


def test_a_forward_on_values_that_writes_into_a_parameter_is_refused_before_it_does() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            if float(x.sum()) < 1e9:
                self.a.weight.mul_(0.5)
            return self.b(self.a(x))

    model = Writing()
    before = model.a.weight.clone()
    with pytest.raises(StructureError, match=r"writes into the parameter 'a\.weight'"):
        trace(model, (torch.ones(2, 3),))
    assert torch.equal(model.a.weight, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dynamically_quantised_network_is_refused() -> None:
    quantization = pytest.importorskip("torch.ao.quantization", reason="torch has moved it elsewhere")
    model = quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear})
    with pytest.raises(StructureError, match="the module '0' is quantised; prune the float model"):
        trace(model, (torch.ones(2, 3),))


def test_a_quantised_module_is_refused() -> None:
    class QuantizedLinear(nn.Linear):
        __module__ = "torch.ao.nn.quantized.modules.linear"

    with pytest.raises(
        StructureError, match="the module '0' is quantised; prune the float model, then quantise it"
    ):
        trace(nn.Sequential(QuantizedLinear(3, 4)), (torch.ones(2, 3),))


def test_a_parameter_without_a_shape_is_refused() -> None:
    with pytest.raises(
        StructureError, match="the parameter 'weight' of '0' has no shape yet; run the model once"
    ):
        trace(nn.Sequential(nn.LazyLinear(4)), (torch.ones(2, 3),))


def test_a_parameter_shared_by_two_layers_couples_them() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            return self.c(torch.sigmoid(self.a(x))), self.c(torch.tanh(self.b(z)))

    model = nets.randomise(Tied()).eval()
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    structure = trace(model, inputs)
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 8)]
    keep = nets.random_keep(structure)
    assert verify(model, structure, keep, inputs) <= 1e-5
    compact: Any = shrink(model, structure, keep)
    assert compact.b.weight is compact.a.weight


def test_a_traced_and_cut_model_is_not_kept_alive() -> None:
    model = nets.Residual()
    compact: Any = shrink(model, trace(model, (torch.zeros(nets.IMAGE),)), {"stem": torch.arange(8) < 3})
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert compact.stem.weight.shape[0] == 3
