"""Prunes, exports and verifies torchvision's classification networks and writes the table of ``docs/exports.md``.

Each network keeps a random half of the units of every prunable group; the compact network is compared with the
masked one, exported to ONNX and compared with PyTorch through ONNX Runtime. Each has a process of its own, with
random weights and the smallest input it takes. The file grows by a row per network, and a second call goes on
where the first one stopped::

    python -m tools.export_table --out docs/exports.md
    python -m tools.export_table --out docs/exports.md --again vit_b_16 swin_t
    python -m tools.export_table resnet18 vgg16
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models
from torchvision.models import list_models

from halpiee.structure import Structure, shrink, trace, verify
from tools.models_table import MISSING, GrowingTable, build, example_inputs

TIME_LIMIT_S = 900
"""For one network: construction, trace, cut, export and six forwards, on a busy machine."""

INTRODUCTION = """Written by `python -m tools.export_table --out docs/exports.md`: random weights, a random half of the
units of every prunable group (widths that suit no runtime, on purpose), the smallest input, float32.

- *parameters*: of the dense network, and what is left.
- *masked*: relative L2 of the compact network against the masked one; a fault here is one of the pruning.
- *ONNX*: relative L2 of ONNX Runtime against PyTorch, the worst of batches 1, 2 and 5; at most 1e-5 is let through.
- *top-1*: share of those inputs whose largest output is the same one.
- *lone norms*: batch norms with no layer to fold into, which became a depthwise convolution of their own.
- *seconds*: export and comparison on the machine that wrote the row.
"""

HEADER = (
    "| network | input | parameters | MB | nodes | lone norms | masked | ONNX | top-1 | seconds | fails |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """The figures of one network.

    Attributes:
        name: its name.
        shape: input that was used.
        dense: parameters of the dense network.
        kept: parameters that are left.
        size_bytes: of the file.
        nodes: of the graph.
        lone_norms: batch norms that had no layer to fold into.
        masked: relative L2 of compact against masked.
        rel_l2: of ONNX Runtime against PyTorch.
        top1: share of equal winners.
        seconds: of export and comparison.
    """

    name: str
    shape: str
    dense: int
    kept: int
    size_bytes: int
    nodes: int
    lone_norms: int
    masked: float
    rel_l2: float
    top1: float
    seconds: float

    def cells(self) -> str:
        """Returns the row of the table."""
        return (
            f"| {self.name} | {self.shape} | {self.dense / 1e6:.1f} M → {self.kept / 1e6:.1f} M | "
            f"{self.size_bytes / 1e6:.1f} | {self.nodes} | {self.lone_norms or '–'} | {self.masked:.0e} | "
            f"{self.rel_l2:.0e} | {self.top1:.0%} | {self.seconds:.0f} | – |"
        )


def names() -> list[str]:
    """Returns torchvision's classification networks."""
    return [str(name) for name in list_models(module=models)]


def half(structure: Structure, seed: int) -> dict[str, Tensor]:
    """Draws half of the units of every prunable group, at least one."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.prunable:
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]] = True
        keep[group.name] = mask
    return keep


def row(name: str) -> Row:
    """Prunes one network, exports it and compares."""
    import onnx

    from halpiee.deploy.onnx import export_onnx

    model = build(name)
    inputs = example_inputs(name)
    structure = trace(model, inputs)
    keep = half(structure, 0)
    masked = verify(model, structure, keep, inputs, tolerance=1e-5)
    dense = sum(p.numel() for p in model.parameters())
    compact = shrink(model, structure, keep).eval()
    del model
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = export_onnx(compact, inputs, Path(folder) / f"{name}.onnx")
        seconds = time.perf_counter() - begun
        kinds = Counter(node.op_type for node in onnx.load(done.path).graph.node)
    return Row(
        name=name,
        shape="×".join(map(str, inputs[0].shape)),
        dense=dense,
        kept=sum(p.numel() for p in compact.parameters()),
        size_bytes=done.size_bytes,
        nodes=sum(kinds.values()),
        lone_norms=done.lone_norms,
        masked=masked,
        rel_l2=done.rel_l2,
        top1=done.top1_agreement,
        seconds=seconds,
    )


def text(rows: list[str]) -> str:
    """Returns the whole file."""
    failed = sum(MISSING in line for line in rows)
    count = f"{len(rows) - failed} of {len(rows)} networks export and verify."
    return "\n".join(["# Pruned networks as ONNX files", "", INTRODUCTION, count, "", HEADER, *rows]) + "\n"


TABLE = GrowingTable(
    module=("tools.export_table",),
    about=str(__doc__),
    names=names(),
    cells=lambda name: row(name).cells(),
    text=text,
    columns=11,
    seconds=TIME_LIMIT_S,
)


if __name__ == "__main__":
    sys.exit(TABLE.main())
