"""Which groups may lose all their units, and what then stands where their layers stood.

A branch whose inner channels are all gone is a constant: the bias of the layer that read them, carried
through what follows. It may go where an addition or a concatenation joins it with something that is still
computed, so that no layer and no output is left with a constant alone. The modules stay, with tensors of size
0 and a forward that computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from halpiee.structure.recorder import Recorder
from halpiee.structure.units import Atoms

__all__ = ["emptied", "vanishable"]

LAYERS = ("conv", "conv_transpose", "linear")
JOINS = ("add", "add_", "cat")


def vanishable(recorder: Recorder, candidates: Sequence[Atoms]) -> list[bool]:
    """Returns for each group of candidates (its roots) whether it may vanish, all those that may together.

    Groups are taken in order; one that would leave a layer or an output with a constant alone, given those
    already taken, is left out. O(groups · ops).
    """
    taken = np.zeros(0, dtype=np.int64)
    verdicts = []
    for roots in candidates:
        together = np.concatenate([taken, roots])
        legal = still_computes(recorder, together)
        verdicts.append(legal)
        if legal:
            taken = together
    return verdicts


def still_computes(recorder: Recorder, roots: Atoms) -> bool:
    """Returns whether every layer and output still depends on the input when these units are gone."""
    constant: set[int] = set()
    void: set[int] = set()
    gone = set(roots.tolist())
    for event in recorder.events:
        reads = [v for v in event.reads if v not in recorder.parameter_values]
        timing = event.timing
        if timing is not None and timing.kind in LAYERS:
            ins = set(recorder.units.find(timing.ins).tolist())
            outs = set(recorder.units.find(timing.outs).tolist())
            if any(v in constant for v in reads):
                return False
            if outs and outs <= gone:
                void.update(event.writes)
            elif ins and ins <= gone:
                constant.update(event.writes)
            continue
        dead = [v for v in reads if v in constant or v in void]
        if not dead:
            continue
        if len(dead) == len(reads):
            # what is summed over no channels is 0 everywhere
            ended = any(v in constant for v in dead) or not recorder.summed.isdisjoint(event.writes)
            (constant if ended else void).update(event.writes)
        elif any(v in constant for v in dead) and event.name not in JOINS:
            return False
    return not any(v in constant or v in void for v in recorder.outputs)


def emptied(model: nn.Module) -> None:
    """Gives every layer and norm of the model that has no channels left a forward for that, in place."""
    for module in model.modules():
        if isinstance(module, CONVS) and 0 in (module.in_channels, module.out_channels):
            module.__class__ = CONSTANT[next(c for c in CONVS if isinstance(module, c))]
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.num_features == 0:
            module.__class__ = BatchNormOfNothing
        elif isinstance(module, nn.LayerNorm) and 0 in module.normalized_shape:
            module.__class__ = LayerNormOfNothing
        elif isinstance(module, nn.GroupNorm) and module.num_channels == 0:
            module.__class__ = GroupNormOfNothing


class Nothing:
    """The forward of a norm without channels: there is nothing to normalise."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input, which has no elements."""
        return x


class BatchNormOfNothing(Nothing, nn.BatchNorm2d):
    """A batch or instance norm without channels."""


class LayerNormOfNothing(Nothing, nn.LayerNorm):
    """A layer norm without channels."""


class GroupNormOfNothing(Nothing, nn.GroupNorm):
    """A group norm without channels."""


def constant_output(module: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns the bias at every position, or zeros; it has no channels where the layer has none."""
    shape = (x.shape[0], int(module.out_channels), *sizes)  # type: ignore[arg-type]
    bias = module.bias
    if not isinstance(bias, Tensor):
        return x.new_zeros(shape)
    return bias.to(x.dtype).reshape(1, -1, *(1,) * len(sizes)).expand(shape)


class ConstantConv:
    """The forward of a convolution without input or without output channels."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    padding: tuple[int, ...] | str

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C_in, …]`` to the bias at every output position ``[N, C_out, …]``."""
        sizes = []
        for index, size in enumerate(x.shape[2:]):
            reach = self.dilation[index] * (self.kernel_size[index] - 1)
            if isinstance(self.padding, str):
                around = reach if self.padding == "same" else 0
            else:
                around = 2 * self.padding[index]
            sizes.append((size + around - reach - 1) // self.stride[index] + 1)
        assert isinstance(self, nn.Module)
        return constant_output(self, x, sizes)


class ConstantConvTranspose:
    """The forward of a transposed convolution without input or without output channels."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    padding: tuple[int, ...] | str
    output_padding: tuple[int, ...]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps ``[N, C_in, …]`` to the bias at every output position ``[N, C_out, …]``."""
        sizes = [
            (size - 1) * self.stride[i]
            - 2 * int(self.padding[i])
            + self.dilation[i] * (self.kernel_size[i] - 1)
            + self.output_padding[i]
            + 1
            for i, size in enumerate(x.shape[2:])
        ]
        assert isinstance(self, nn.Module)
        return constant_output(self, x, output_size[-len(sizes) :] if output_size else sizes)


class ConstantConv1d(ConstantConv, nn.Conv1d):
    """A 1d convolution without input or output channels."""


class ConstantConv2d(ConstantConv, nn.Conv2d):
    """A 2d convolution without input or output channels."""


class ConstantConv3d(ConstantConv, nn.Conv3d):
    """A 3d convolution without input or output channels."""


class ConstantConvTranspose1d(ConstantConvTranspose, nn.ConvTranspose1d):
    """A transposed 1d convolution without input or output channels."""


class ConstantConvTranspose2d(ConstantConvTranspose, nn.ConvTranspose2d):
    """A transposed 2d convolution without input or output channels."""


class ConstantConvTranspose3d(ConstantConvTranspose, nn.ConvTranspose3d):
    """A transposed 3d convolution without input or output channels."""


CONSTANT: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: ConstantConvTranspose1d,
    nn.ConvTranspose2d: ConstantConvTranspose2d,
    nn.ConvTranspose3d: ConstantConvTranspose3d,
    nn.Conv1d: ConstantConv1d,
    nn.Conv2d: ConstantConv2d,
    nn.Conv3d: ConstantConv3d,
}
CONVS = tuple(CONSTANT)
