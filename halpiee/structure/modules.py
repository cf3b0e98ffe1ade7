"""Forwards that replace a module's own: attention with fewer heads, layers without channels, masked norms.

**Heads.** ``nn.MultiheadAttention`` and the windowed attention of torchvision compute a head's width from the width
of their input, so their own forward can only be narrower as a whole. Here the width of a head is ``rows / (3 · heads)``
of the projection; it stays when heads are removed, and so does the softmax scale (Vaswani et al. 2017, section 3.2.2).
A model is traced with these forwards, and a shrunk module gets one where its own no longer fits.

**No channels.** A convolution without channels returns its bias, a norm without channels its input.

**Masked norms.** While a module of a masked model runs, its norms over channels, written out or not, see the kept ones
only. The module keeps its class, attributes, parameters and signature: two hooks around its forward enter and leave a
function mode. Hooks also keep ``nn.TransformerEncoderLayer`` off its fused kernel, which does not call its norms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Heads(nn.MultiheadAttention):
    """Multi-head attention whose heads together are not as wide as its input."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends as ``nn.MultiheadAttention`` does, which documents the arguments."""
        joint = query is key and key is value
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self.projected(query, key, value, joint)
        mask = self.mask(attn_mask, key_padding_mask, q, k, is_causal)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            y = F.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            y = y.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y, weights

    def projected(self, query: Tensor, key: Tensor, value: Tensor, joint: bool) -> tuple[Tensor, ...]:
        """Returns queries, keys and values ``[N, heads, L, width of a head]``."""
        assert self.in_proj_weight is not None
        width = self.in_proj_weight.shape[0] // (3 * self.num_heads)
        if joint:
            rows = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            parts = rows.view(*rows.shape[:2], 3, self.num_heads, width).unbind(2)
        else:
            weights = self.in_proj_weight.chunk(3)
            biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
            parts = tuple(
                F.linear(x, w, b).view(*x.shape[:2], self.num_heads, width)
                for x, w, b in zip((query, key, value), weights, biases, strict=True)
            )
        return tuple(part.transpose(1, 2) for part in parts)

    def mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor, is_causal: bool
    ) -> Tensor | None:
        """Returns the bias of the scores ``[N or 1, heads or 1, L, S]``, or None."""
        found: Tensor | None = None
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        for given in (attn_mask, padding):
            if given is None:
                continue
            added = given
            if added.dtype == torch.bool:
                added = torch.zeros_like(given, dtype=q.dtype).masked_fill(given, float("-inf"))
            if given is padding:
                added = added.reshape(q.shape[0], 1, 1, -1)
            elif added.dim() == 3:
                added = added.view(q.shape[0], -1, *added.shape[1:])
            found = added if found is None else found + added
        return found


def adapted(model: nn.Module, *, always: bool = False) -> None:
    """Gives attention modules, by default those whose own does not fit, the forward in which heads may be fewer."""
    for module, rows, columns in attentions(model):
        if isinstance(module, nn.MultiheadAttention):
            module.embed_dim = columns
        if rows == 3 * columns and not always:
            continue
        if isinstance(module, nn.MultiheadAttention):
            module.__class__ = Heads
            module._qkv_same_embed_dim = False  # keeps encoder layers off the fused kernel of the full width
        else:
            from halpiee.structure import windows

            module.__class__ = windows.NARROW[type(module).__name__]
    unnested(model)


def unnested(model: nn.Module) -> None:
    """Keeps encoders off nested tensors, in place, where a layer in them cannot take the fused kernel for those.

    ``nn.TransformerEncoder`` decides when it is built to make nested tensors of padded inputs. A layer whose attention
    has lost heads, or whose norms are hooked, calls its modules, which take none.
    """
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(module, Heads) or module._forward_pre_hooks or module._forward_hooks
            for module in encoder.layers.modules()
        ):
            encoder.use_nested_tensor = False


COMPUTED_BY_HOOK = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
}
"""Class or module of a hook that computes a module's weight → the function that removes it."""


def computing_hook(module: nn.Module) -> tuple[str, str] | None:
    """Returns the class of the hook that computes a module's weight, and the function that removes it, or None."""
    for kind in map(type, module._forward_pre_hooks.values()):
        if undo := COMPUTED_BY_HOOK.get(kind.__name__) or COMPUTED_BY_HOOK.get(kind.__module__):
            return kind.__name__, undo
    return None


def attentions(model: nn.Module) -> Iterator[tuple[nn.Module, int, int]]:
    """Yields the attention modules that can lose heads, with rows and columns of their joint projection's weight."""
    for module in model.modules():
        kind = type(module)
        if kind is nn.MultiheadAttention:
            plain = module.bias_k is None and not module.add_zero_attn
            if plain and module._qkv_same_embed_dim and module.in_proj_weight is not None:
                weight = module.get_parameter("in_proj_weight")
                yield module, weight.shape[0], weight.shape[1]
        elif kind.__module__ in WINDOWED and kind.__name__ in WINDOWED[kind.__module__]:
            projection = module.get_submodule("to_qkv" if hasattr(module, "to_qkv") else "qkv")
            rows, columns = projection.get_parameter("weight").shape
            yield module, rows, columns


WINDOWED = {
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
    "torchvision.models.video.swin_transformer": ("ShiftedWindowAttention3d",),
    "torchvision.models.maxvit": ("RelativePositionalMultiHeadAttention",),
}
"""Module → its attention classes whose forward computes a head's width from the input's."""


def heads_of(module: nn.Module | None) -> tuple[str, int] | None:
    """Returns the attribute in which an attention module holds its number of heads, and that number."""
    return next(iter(attributes_of(module, HEADS).items()), None)


def attributes_of(module: nn.Module | None, names: Collection[str]) -> dict[str, int]:
    """Returns a module's numeric attributes of the given names."""
    return {
        name: value
        for name, value in (vars(module).items() if module is not None else ())
        if type(value) is int and name in names
    }


HEADS = frozenset({"num_heads", "n_heads", "heads", "num_attention_heads", "n_head", "nhead"})
"""Attributes that hold the number of heads of the queries."""

SHARED_HEADS = frozenset(
    {"num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads", "n_local_kv_heads"}
)
"""Attributes that hold the number of heads of keys and values, each of which several heads of the queries read."""

HEAD_WIDTH = frozenset({"head_dim", "dim_head", "attention_head_size", "d_head", "head_size", "d_kv"})
"""Attributes that hold the width of one head."""


def emptied(model: nn.Module) -> None:
    """Gives every layer and norm without channels a forward for that, in place."""
    for module in model.modules():
        if isinstance(module, CONVS) and 0 in (module.in_channels, module.out_channels):
            module.__class__ = CONSTANT[next(c for c in CONVS if isinstance(module, c))]
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.num_features == 0:
            module.__class__ = EMPTY[nn.BatchNorm2d]
        elif isinstance(module, nn.LayerNorm) and 0 in module.normalized_shape:
            module.__class__ = EMPTY[nn.LayerNorm]
        elif isinstance(module, nn.GroupNorm) and module.num_channels == 0:
            module.__class__ = EMPTY[nn.GroupNorm]


def with_forward(of: type, kind: type[nn.Module], prefix: str) -> Any:
    """Returns a subclass of a layer with the forward of a class, under a name of this module, for pickle."""
    name = f"{prefix}{kind.__name__}"
    return globals().setdefault(name, type(name, (of, kind), {"__module__": __name__, "__doc__": of.__doc__}))


class Nothing:
    """A norm without channels: there is nothing to normalise."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input, which has no elements."""
        return x


EMPTY = {kind: with_forward(Nothing, kind, "Empty") for kind in (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)}


def constant_output(module: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns the bias at every position, or zeros; it has no channels where the layer has none."""
    shape = (x.shape[0], int(module.out_channels), *sizes)  # type: ignore[arg-type]
    bias = module.bias
    if not isinstance(bias, Tensor):
        return x.new_zeros(shape)
    return bias.to(x.dtype).reshape(1, -1, *(1,) * len(sizes)).expand(shape).clone()  # written into in place


class ConstantConv:
    """A convolution without input or output channels."""

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
    """A transposed convolution without input or output channels."""

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


CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONSTANT = {
    kind: with_forward(ConstantConvTranspose if i < 3 else ConstantConv, kind, "Constant")
    for i, kind in enumerate(CONVS)
}


LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
RMS = ("input", "normalized_shape", "weight", "eps")
BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
GROUP = ("input", "num_groups", "weight", "bias", "eps")

NORMS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    F.layer_norm: (F.layer_norm, LAYER),
    torch.layer_norm: (F.layer_norm, LAYER),
    F.rms_norm: (F.rms_norm, RMS),
    torch.rms_norm: (F.rms_norm, RMS),
    F.group_norm: (F.group_norm, GROUP),
    torch.group_norm: (F.group_norm, GROUP),
    F.batch_norm: (F.batch_norm, BATCH),
    torch.batch_norm: (F.batch_norm, BATCH),
}
"""Function that a forward may call → the same of ``torch.nn.functional``, and its arguments in order."""

IN_A_GRAPH: dict[Any, Any] = {
    F.layer_norm: torch.ops.aten.layer_norm.default,
    F.rms_norm: torch.ops.aten.rms_norm.default,
    F.group_norm: torch.ops.aten.group_norm.default,
}
"""The op for a compiled graph: run as Python under the mode, the graph would restrict the function's norm twice."""


def length(x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **given: Any) -> Any:
    """Returns the length of vectors, as ``torch.norm``, which calls its order ``p``, and ``torch.linalg.norm`` do."""
    order = given.get("p", ord)
    order = 2.0 if order is None or order == "fro" else order
    return torch.ops.aten.linalg_vector_norm(x, order, [dim] if isinstance(dim, int) else dim, keepdim)


AVERAGES: dict[Any, Any] = {
    **dict.fromkeys((torch.mean, Tensor.mean), torch.ops.aten.mean),
    **dict.fromkeys((torch.var, Tensor.var), torch.ops.aten.var),
    **dict.fromkeys((torch.std, Tensor.std), torch.ops.aten.std),
    torch.var_mean: torch.ops.aten.var_mean,
    torch.std_mean: torch.ops.aten.std_mean,
    torch.linalg.vector_norm: torch.ops.aten.linalg_vector_norm,
    **dict.fromkeys((torch.norm, Tensor.norm, torch.linalg.norm), length),
    F.normalize: lambda x, p=2.0, dim=1, eps=1e-12, out=None: x / length(x, p, dim, True).clamp_min(eps),
}
"""Function of which a forward may make a norm of its own → the same in ops, for a compiled graph."""


class KeptChannels(TorchFunctionMode):
    """Computes norms and averages over the kept channels; the other channels of a norm come out as 0."""

    def __init__(self, kept: dict[int, tuple[int, Tensor]]) -> None:
        super().__init__()
        self.kept = kept  # number of a norm → dimension of its channels, int64 indices of those that it sees
        self.number = 0  # how many norms and averages the hooked module has called since its forward began
        self.inside = 0  # how many inner modules of the hooked one are running; their norms are not changed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function; a norm over that many channels sees the kept ones."""
        kwargs = kwargs or {}
        if func not in NORMS and func not in AVERAGES:
            return func(*args, **kwargs)
        seen = None if self.inside else self.kept.get(self.number)
        self.number += 0 if self.inside else 1
        if seen is None and not torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in NORMS:
            function, names = NORMS[func]
            given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
            x, args = given.pop("input"), ()
            if torch.compiler.is_compiling():
                function = IN_A_GRAPH.get(function, function)
        else:
            function, given = AVERAGES[func] if torch.compiler.is_compiling() else func, dict(kwargs)
            x, *args = args or [given.pop(next(iter(given)))]
        if seen is None:
            return function(x, *args, **given)
        dim, kept = seen[0] % x.dim(), seen[1].to(x.device)
        if kept.numel() == 0:
            return torch.zeros_like(x)
        for name in ("weight", "bias") if "training" not in given else ():
            if given.get(name) is not None:
                given[name] = given[name].index_select(0, kept.to(given[name].device))
        if "normalized_shape" in given:
            given["normalized_shape"] = (kept.numel(),)
        y = function(x.index_select(dim, kept), *args, **given)
        if func in AVERAGES and func is not F.normalize:
            return y
        return torch.zeros_like(x, dtype=y.dtype).index_copy(dim, kept, y)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Begins, before the forward of a module."""
        self.number = 0
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Ends, after the forward of a module, or where it fails."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def pause(self, module: nn.Module, args: Any) -> None:
        """Pauses before the forward of an inner module."""
        self.inside += 1

    def resume(self, module: nn.Module, args: Any, output: Any) -> None:
        """Resumes after the forward of an inner module, or where it fails."""
        self.inside -= 1


def watch_norms(module: nn.Module, kept: dict[int, tuple[int, Tensor]]) -> None:
    """Hooks a module so that its own norms over channels, not its children's, see the kept channels only.

    ``kept`` maps the number of a norm, in order, to the dimension of its channels and int64 indices of those that stay.
    """
    mode = KeptChannels(kept)
    for inner in module.modules():
        inner.register_forward_pre_hook(mode.enter if inner is module else mode.pause)
        inner.register_forward_hook(mode.leave if inner is module else mode.resume, always_call=True)
