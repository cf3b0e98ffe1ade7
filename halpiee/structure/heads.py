"""Attention modules that lose whole heads: the same parameters, with a forward in which heads may be fewer.

``nn.MultiheadAttention`` and the windowed attention of torchvision work a head's width out from the width of
their input, so their own forward can only be narrower as a whole. Here the width of a head is what its rows
are, ``rows / (3 · heads)``, and stays when heads go, the softmax scale with it (Vaswani et al. 2017, section
3.2.2). A model is traced with these forwards, and a shrunk module gets one where its own no longer fits.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HEADS", "HEAD_WIDTH", "SHARED_HEADS", "Heads", "adapted", "heads_of", "held", "unnested"]


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
        """Returns what is added to the scores ``[N or 1, heads or 1, L, S]``, or None."""
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
    """Gives attention modules the forward in which heads may be fewer, in place.

    Args:
        model: a copy of a model, cut or not.
        always: whether also where the module's own forward fits.
    """
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

    ``nn.TransformerEncoder`` asks its first layer once, when it is built, and makes a nested tensor of what a padding
    mask leaves. A layer whose attention has lost heads, or whose norms are hooked, calls its modules, which take none.
    """
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(module, Heads) or module._forward_pre_hooks or module._forward_hooks
            for module in encoder.layers.modules()
        ):
            encoder.use_nested_tensor = False


def attentions(model: nn.Module) -> Iterator[tuple[nn.Module, int, int]]:
    """Yields the attention modules that can lose heads, with rows and columns of their joint projection."""
    torchvision = [m for n, m in sys.modules.items() if n in WINDOWED]
    for module in model.modules():
        kind = type(module)
        if kind is nn.MultiheadAttention:
            plain = module.bias_k is None and not module.add_zero_attn
            if plain and module._qkv_same_embed_dim and module.in_proj_weight is not None:
                weight = module.get_parameter("in_proj_weight")
                yield module, weight.shape[0], weight.shape[1]
        elif torchvision and kind.__module__ in WINDOWED and kind.__name__ in WINDOWED[kind.__module__]:
            projection = module.get_submodule("to_qkv" if hasattr(module, "to_qkv") else "qkv")
            rows, columns = projection.get_parameter("weight").shape
            yield module, rows, columns


WINDOWED = {
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
    "torchvision.models.video.swin_transformer": ("ShiftedWindowAttention3d",),
    "torchvision.models.maxvit": ("RelativePositionalMultiHeadAttention",),
}
"""Module → its attention classes whose forward works a head's width out from the input."""


def heads_of(module: nn.Module | None) -> tuple[str, int] | None:
    """Returns the attribute in which an attention module holds its number of heads, and that number."""
    return next(iter(held(module, HEADS).items()), None)


def held(module: nn.Module | None, names: Collection[str]) -> dict[str, int]:
    """Returns the numbers that a module holds under these names."""
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
