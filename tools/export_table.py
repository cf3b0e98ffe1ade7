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

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models
from torchvision.models import list_models

from halpiee.errors import HalpieeError
from halpiee.structure import Structure, shrink, trace, verify
from tools.models_table import build, example_inputs

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
    """What one network gave.

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


def line_of(name: str) -> str:
    """Returns the row of one network, or its name with what is wrong."""
    try:
        return row(name).cells()
    except (HalpieeError, RuntimeError, ValueError) as error:
        return refused(name, " ".join(str(error).split())[:300])


def refused(name: str, reason: str) -> str:
    """Returns the row of a network that gave no figures."""
    return f"| {name} | – | – | – | – | – | – | – | – | – | {reason.replace('|', '/')} |"


def apart(name: str) -> str:
    """Returns the row of one network, worked out in a process of its own."""
    command = [sys.executable, "-m", "tools.export_table", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return refused(name, f"takes more than {TIME_LIMIT_S} s")
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
    if rows:
        return rows[0]
    last = (done.stderr.splitlines() or ["no message"])[-1]
    return refused(name, f"ended with code {done.returncode}: {last[:200]}")


def written(path: Path) -> dict[str, str]:
    """Returns the rows that a table already has, by network."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {line.split("|")[1].strip(): line for line in lines}
    found.pop("network", None)
    return found


def table(rows: dict[str, str]) -> str:
    """Returns the whole file, its rows in torchvision's order."""
    ordered = [rows[name] for name in names() if name in rows]
    failed = sum("| – | – | – |" in line for line in ordered)
    count = f"{len(ordered) - failed} of {len(ordered)} networks export and verify."
    return (
        "\n".join(["# Pruned networks as ONNX files", "", INTRODUCTION, count, "", HEADER, *ordered]) + "\n"
    )


def main() -> int:
    """Writes the table, or prints the rows of the networks named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="torchvision networks; all of them where none is named")
    parser.add_argument("--out", type=Path, help="file to write; the rows it has are kept")
    parser.add_argument("--again", action="store_true", help="work out rows anew that the file has")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = arguments.names or names()
    unknown = [name for name in chosen if name not in names()]
    if unknown:
        parser.error(
            f"{', '.join(unknown)}: no classification network of torchvision; --help lists the usage"
        )
    rows = written(arguments.out) if arguments.out is not None else {}
    for name in chosen:
        if name in rows and not arguments.again:
            continue
        rows[name] = apart(name) if arguments.out is not None else line_of(name)
        print(rows[name], flush=True)
        if arguments.out is not None:
            part = arguments.out.with_name(arguments.out.name + ".part")
            part.write_text(table(written(arguments.out) | {name: rows[name]}), encoding="utf-8")
            part.replace(arguments.out)
    return 1 if any("| – | – | – |" in rows[name] for name in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
