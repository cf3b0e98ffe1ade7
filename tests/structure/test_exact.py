"""Masked against compact on every little network; what freezes, with its reason; what stays untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from halpiee.errors import MismatchError, StructureError
from halpiee.structure import masked, shrink, trace, verify

from . import nets


@pytest.mark.parametrize("name", nets.PRUNED)
def test_masked_equals_compact_in_double_precision(name: str) -> None:
    builder, shape = nets.PRUNED[name]
    model = nets.randomise(builder()).double().eval()
    x = torch.zeros(shape, dtype=torch.float64)
    structure = trace(model, (x,))
    assert structure.prunable, "nothing can be removed"
    for seed in range(3):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, (x,), tolerance=1e-12, seed=seed) <= 1e-12


def test_masked_equals_compact_for_a_table_of_vectors() -> None:
    model = nets.randomise(nets.Embedded()).double()
    tokens = torch.tensor([[1, 2, 3], [7, 0, 9]])
    structure = trace(model, (tokens,))
    assert [(g.name, g.size) for g in structure.prunable] == [("table", 6)]
    keep = {"table": torch.tensor([True, False, False, True, True, False])}
    assert verify(model, structure, keep, (tokens,), tolerance=1e-12) <= 1e-12
    compact: Any = shrink(model, structure, keep)
    assert compact.table.embedding_dim == 3


@pytest.mark.parametrize(
    ("builder", "layer", "reason"),
    [
        (lambda: nets.Mixer("softmax"), "a", "_softmax over channels"),
        (lambda: nets.Mixer("mean"), "a", "mean over channels"),
        (lambda: nets.Mixer("amax"), "a", "amax over channels"),
        (lambda: nets.Mixer("sort"), "a", "sort over channels"),
        (lambda: nets.Mixer("cumsum"), "a", "cumsum over channels"),
        (lambda: nets.Mixer("lrn"), "a", "avg_pool3d"),
        (lambda: nets.Mixer("fft"), "a", "_fft_r2c"),
        (lambda: nets.ChannelSum("sigmoid"), "a", "sum over channels"),
        (nets.WidthScalar, "a", "div: a number computed from the width"),
        (nets.SliceHalf, "a", "slice with literal bounds"),
        (nets.SplitLiteral, "a", "split_with_sizes with literal bounds"),
        (nets.InputResidual, "b", "a network input"),
        (nets.Outputs, "b", "feeds the network's output"),
        (nets.Residual, "head", "feeds the network's output"),
    ],
)
def test_what_cannot_go_says_which_op_holds_it(
    builder: Callable[[], nn.Module], layer: str, reason: str
) -> None:
    structure = trace(builder().eval(), (torch.zeros(nets.IMAGE),))
    outs = next(item.out_groups for item in structure.layers if item.name == layer)
    for name, _ in outs:
        group = structure.by_name[name]
        assert not group.prunable
        assert group.reason == reason


def test_a_residual_onto_the_input_leaves_the_inner_layer_prunable() -> None:
    structure = trace(nets.InputResidual(), (torch.zeros(nets.IMAGE),))
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 6)]


def test_channels_padded_with_zeros_keep_their_place() -> None:
    structure = trace(nets.PaddedShortcut(), (torch.zeros(nets.IMAGE),))
    model = nets.randomise(nets.PaddedShortcut()).double()
    x = torch.zeros(nets.IMAGE, dtype=torch.float64)
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 4)]
    assert next(g.reason for g in structure.groups if g.name == "b") == "padded channels at constant_pad_nd"
    assert (
        verify(model, structure, {"a": torch.tensor([True, False, False, True])}, (x,), tolerance=1e-12)
        <= 1e-12
    )


def test_two_inputs_are_both_inputs() -> None:
    structure = trace(nets.TwoInputs(), (torch.zeros(nets.IMAGE), torch.zeros(2, 4)))
    layers = {layer.name: layer for layer in structure.layers}
    assert layers["image"].in_groups == (("input", 3),)
    assert layers["vector"].in_groups == (("input#2", 4),)
    assert layers["image"].out_groups == layers["vector"].out_groups == (("image", 1),)


def test_the_compact_classes_and_numbers_are_those_of_the_layers() -> None:
    model = nets.Depthwise(2).eval()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    keep = {"expand": torch.tensor([True, False, True, True, False, False, False, False])}
    compact = shrink(model, structure, keep)
    assert type(compact) is nets.Depthwise
    assert (compact.expand.in_channels, compact.expand.out_channels) == (3, 3)
    depth = compact.depth
    assert (depth.in_channels, depth.out_channels, depth.groups) == (3, 6, 3)
    assert compact.bn.num_features == 6
    assert compact.project.in_channels == 6


def test_masked_keeps_names_and_shapes() -> None:
    model = nets.randomise(nets.LayerNormed())
    structure = trace(model, (torch.zeros(2, 4, 3),))
    full = masked(model, structure, {"a": torch.tensor([True] * 3 + [False] * 5)})
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in full.state_dict().items()} == before


def test_nothing_of_the_model_changes() -> None:
    model = nets.randomise(nets.Residual()).train()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    keep = nets.random_keep(structure)
    shrink(model, structure, keep)
    masked(model, structure, keep)
    assert model.training
    assert model.bn1.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_gradients_are_cut_like_their_parameters() -> None:
    model = nets.randomise(nets.Residual())
    model(torch.ones(nets.IMAGE)).sum().backward()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    compact: Any = shrink(model, structure, {"stem": torch.arange(8) < 3})
    assert torch.equal(compact.stem.weight.grad, model.stem.weight.grad[:3])
    assert torch.equal(compact.conv1.weight.grad, model.conv1.weight.grad[:, :3])


def test_two_traces_give_the_same_names_and_units() -> None:
    first = trace(nets.Concat(), (torch.zeros(nets.IMAGE),))
    second = trace(nets.Concat(), (torch.zeros(nets.IMAGE),))
    assert first.groups == second.groups
    assert first.layers == second.layers
    assert first.ops == second.ops
    assert all((a.units == b.units).all() for a, b in zip(first.slots, second.slots, strict=True))


def test_the_check_refuses_a_structure_that_is_wrong() -> None:
    model = nets.randomise(nets.Residual())
    x = torch.zeros(nets.IMAGE)
    structure = trace(model, (x,))
    for slot in structure.slots:  # a wrong map: the columns of the head in another order
        if slot.tensor == "head.weight" and slot.dim == 1:
            slot.units[:] = slot.units[::-1].copy()
    keep = {"stem": torch.tensor([True, True, True, False, False, False, False, False])}
    model_full = masked(model, structure, keep)
    assert model_full is not model
    for slot in structure.slots:
        if slot.tensor == "stem.weight" and slot.dim == 0:
            slot.units[:] = slot.units[::-1].copy()
    with pytest.raises((MismatchError, RuntimeError)):
        verify(model, structure, keep, (x,))


def test_a_keep_of_a_group_that_stays_is_refused() -> None:
    model = nets.Residual()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    with pytest.raises(
        StructureError, match=r"removes units of 'head', which is not prunable \(feeds the network"
    ):
        shrink(model, structure, {"head": torch.tensor([True, True, True, True, False])})


def test_an_unknown_group_suggests_the_close_name() -> None:
    model = nets.Residual()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    with pytest.raises(StructureError, match=r"names the group 'stm', .*did you mean 'stem'\?"):
        masked(model, structure, {"stm": torch.ones(8, dtype=torch.bool)})


def test_an_emptied_group_is_refused_by_name() -> None:
    model = nets.Residual()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    with pytest.raises(StructureError, match="keep empties 'stem', which may not vanish"):
        shrink(model, structure, {"stem": torch.zeros(8, dtype=torch.bool)})


@pytest.mark.parametrize("mask", [torch.ones(7, dtype=torch.bool), torch.ones(8), [True] * 8])
def test_a_keep_of_the_wrong_size_or_type_is_refused(mask: object) -> None:
    model = nets.Residual()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    with pytest.raises(StructureError, match=r"keep\['stem'\] must be a bool tensor of shape \(8,\), found"):
        shrink(model, structure, {"stem": mask})  # type: ignore[dict-item]


def test_another_model_is_refused_by_its_first_layer_that_differs() -> None:
    structure = trace(nets.Grouped(), (torch.zeros(nets.IMAGE),))
    other = nets.Grouped()
    other.g = nn.Conv2d(8, 12, 3, padding=1, groups=4)
    with pytest.raises(
        StructureError, match=r"the layer 'g' does not fit: 'g.weight' was \[16, 2, 3, 3\] when traced"
    ):
        shrink(other, structure, {})
    with pytest.raises(
        StructureError, match=r"the structure names 'a\.weight', which this model does not have"
    ):
        shrink(nn.Sequential(nn.Conv2d(3, 8, 1)), structure, {})


def test_a_forward_that_fails_says_where() -> None:
    with pytest.raises(StructureError, match="the forward of Residual fails on the example inputs in 'stem'"):
        trace(nets.Residual(), (torch.zeros(2, 4, 8, 8),))


def test_a_parametrised_module_is_refused() -> None:
    model = nets.Residual()
    torch.nn.utils.parametrizations.weight_norm(model.stem)
    with pytest.raises(StructureError, match=r"the module 'stem' is parametrised.*remove_parametrizations"):
        trace(model, (torch.zeros(nets.IMAGE),))


def test_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(StructureError, match=r"as a tuple, found Tensor; write trace\(model, \(x,\)\)"):
        trace(nets.Residual(), torch.zeros(nets.IMAGE))  # type: ignore[arg-type]


def test_half_precision_and_autocast_trace_alike() -> None:
    x = torch.zeros(nets.IMAGE)
    plain = trace(nets.Residual(), (x,))
    half = trace(nets.Residual().bfloat16(), (x.bfloat16(),))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = trace(nets.Residual(), (x,))
    assert plain.groups == half.groups == cast.groups
    assert {timed.op.dtype for timed in half.ops} == {"bfloat16"}


def test_the_compact_model_compiles_to_a_program_and_copies() -> None:
    model = nets.randomise(nets.Residual()).eval()
    x = torch.ones(nets.IMAGE)
    structure = trace(model, (x,))
    compact = shrink(model, structure, nets.random_keep(structure))
    program = torch.export.export(compact, (x,)).module()
    copied = copy.deepcopy(compact)
    copied.load_state_dict(compact.state_dict())
    with torch.no_grad():
        assert torch.allclose(program(x), compact(x))
        assert torch.equal(copied(x), compact(x))
