"""The same network without the removed units, in the shapes of the full one.

Rows of removed units, their affine and the columns that read them are 0. A norm over channels sees the kept
ones only. The output equals the shrunk model's exactly, in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.structure.groups import Structure
from halpiee.structure.heads import unnested
from halpiee.structure.kept_norm import watch_norms
from halpiee.structure.shrink import alive_of, check_shapes
from halpiee.structure.stored import forgotten
from latency.copies import copy_of

__all__ = ["masked"]


def masked(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy of the same shapes whose outputs are those of ``shrink(model, structure, keep)``.

    Args:
        model: the traced model.
        structure: its structure.
        keep: group name → BoolTensor ``[size]``; a missing group is kept whole.

    Raises:
        StructureError: the keep does not fit the structure, or the model is not the traced one.
    """
    alive = structure.keep_vector(keep)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    check_shapes(tensors, structure.details["shapes"])
    full = copy_of(model)
    copies = dict(full.named_parameters()) | dict(full.named_buffers())
    with torch.no_grad():
        for slot in structure.slots:
            stays = alive_of(alive, slot.units)
            if (
                stays.all()
                or slot.kind == "parameter"
                or slot.tensor.endswith((".running_mean", ".running_var"))
            ):
                continue
            index = torch.from_numpy(np.flatnonzero(~stays)).to(copies[slot.tensor].device)
            copies[slot.tensor].index_fill_(slot.dim, index, 0)
    kept: dict[str, dict[int, Tensor]] = {}
    for norm in structure.details["norms"]:
        stays = alive_of(alive, norm.units)
        if not stays.all():
            kept.setdefault(norm.module, {})[stays.size] = torch.from_numpy(np.flatnonzero(stays))
    for path, channels in kept.items():
        watch_norms(full.get_submodule(path), channels)
    unnested(full)
    forgotten(full, structure.details["stored"])
    return full
