"""Traces, cuts and checks networks, or exports them pruned, a row of a table each; of torchvision, timm or Ultralytics.

Each network has a process of its own at low priority, with random weights and the smallest input it takes; one that
takes too long or too much memory is named with that reason. The file grows by a row per network, and a second call goes
on where the first one stopped::

    python -m tools.models_table --out docs/models.md
    python -m tools.models_table --out docs/models.md --again vit_b_16 swin_t
    python -m tools.models_table resnet18 vgg16
    python -m tools.models_table --exports --out docs/exports.md            # classification networks as ONNX files
    python -m tools.models_table --timm --out docs/models_timm.md    # one small network of every family of timm
    python -m tools.models_table --yolo --out docs/models_yolo.md    # the nine smallest of Ultralytics
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection, get_model, list_models, quantization, segmentation

from halpiee.errors import HalpieeError, said
from halpiee.structure import Structure, explain, shrink, trace, verify
from latency.backends.torch.modules import tensors_in
from latency.files import write

IMAGE_SIZES = {"inception_v3": 96, "maxvit_t": 224}
"""Smallest inputs that are not 64×64."""

IN_DOUBLE = frozenset({"convnext_tiny", "densenet121", "mobilenet_v3_large", "resnet50", "swin_t"})
"""Networks that are checked in double precision too, to 1e-12."""

MEMORY_LIMIT_BYTES = 12 << 30
"""Limit for one network: construction, trace, three cuts and seven forwards."""

BY = """Written by `python -m tools.models_table --out docs/models.md`: random weights, the smallest input, float32,
five networks in double precision too. Detectors are compared at the layers before their post-processing, whose sorting
and thresholds turn a last bit into another box.
"""

COLUMNS = """
- *trace*: seconds of one core, construction excluded; the first trace of a process, which pays for imports too.
- *groups prunable*: of all groups; the others hold inputs, outputs and what is frozen.
- *parameters prunable*: share in tensors that a prunable unit is in.
- *MACs prunable*: share of the multiply-accumulates in layers with a prunable group on either side.
- *rel. error*: masked against compact, the largest of three random keeps of 30 to 70 % per group; fp64 is in double
  precision.
- *frozen*: reasons other than inputs and outputs, with the number of groups each holds.
"""

PLAIN = ("a network input", "feeds the network's output")


HEADER = (
    "| network | input | trace, s | groups prunable | parameters prunable | MACs prunable | rel. error "
    "| frozen |\n"
    "|---|---|---|---|---|---|---|---|"
)


def build(name: str) -> nn.Module:
    """Builds a network with random weights and irregular statistics."""
    arguments: dict[str, Any] = {"weights": None}
    if name in list_models(module=detection) + list_models(module=segmentation):
        arguments["weights_backbone"] = None
    if name in list_models(module=detection) and not name.startswith("ssd"):
        arguments |= {"min_size": 64, "max_size": 96}
    torch.manual_seed(0)
    return uneven(get_model(name, **arguments).eval())


def uneven(model: nn.Module) -> nn.Module:
    """Sets statistics and parameters that begin alike or at zero, which would hide differences."""
    module: Any
    for module in model.modules():
        if "BatchNorm" in type(module).__name__:
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # as heads do
                parameter.normal_(std=0.1)
            elif parameter.abs().max() < 1e-3:  # scales of a millionth hide a branch
                parameter.uniform_(0.5, 1.5)
    return model


def example_inputs(name: str) -> tuple[Any, ...]:
    """Returns the smallest inputs that a network takes."""
    if name in list_models(module=detection):
        return ([torch.rand(3, 64, 64)],)
    if name in list_models(module=models.optical_flow):
        return (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if name in list_models(module=models.video):
        return (
            (torch.randn(1, 3, 16, 224, 224),)
            if name.startswith(("mvit", "s3d"))
            else (torch.randn(1, 3, 8, 64, 64),)
        )
    size = 224 if name.startswith("vit") else IMAGE_SIZES.get(name, 64)
    return (torch.randn(1, 3, size, size),)


def random_keep(structure: Structure, seed: int, share: float | None = None) -> dict[str, Tensor]:
    """Draws a share of the units of every prunable group, at least one unit; without a share 30 to 70 %, each apart."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.prunable:
        if share is None:
            drawn = 0.3 + 0.4 * torch.rand((), generator=generator)
            mask = torch.rand(group.size, generator=generator) < drawn
            mask[torch.randint(group.size, (1,), generator=generator)] = True
        else:
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[torch.randperm(group.size, generator=generator)[: max(1, int(share * group.size))]] = True
        keep[group.name] = mask
    return keep


def parameter_share(model: nn.Module, structure: Structure) -> float:
    """Returns the share of the parameters in tensors that a prunable unit is in."""
    prunable = {u for g in structure.prunable for u in range(g.start, g.start + g.size)}
    cut = {slot.tensor for slot in structure.slots if prunable.intersection(slot.units.tolist())}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(n for name, n in sizes.items() if name in cut) / sum(sizes.values())


def cells(
    name: str,
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    double: bool,
    shown: str = "",
    trace_s: float = -1.0,
) -> str:
    """Traces one network and checks it with random keeps; returns its row.

    ``shown`` and ``trace_s`` are of a trace on another input.
    """
    start = time.process_time()
    structure = trace(model, inputs)
    seconds = time.process_time() - start if trace_s < 0 else trace_s
    error = f"{largest_error(model, structure, inputs, 1e-5):.0e}"
    if double:
        wide = tuple(x.double() for x in inputs)
        error += f", fp64 {largest_error(model.double(), structure, wide, 1e-12):.0e}"
    frozen = Counter(
        shortened(g.reason) for g in structure.groups if g.reason is not None and g.reason not in PLAIN
    )
    reasons = "; ".join(f"{reason} ({count})" for reason, count in frozen.items()) or "–"
    shape = shown or "×".join(map(str, tensors_in(inputs)[0].shape))
    macs = explain(structure).prunable_macs_share
    return (
        f"| {name} | {shape} | {seconds:.1f} | {len(structure.prunable)}/{len(structure.groups)} | "
        f"{parameter_share(model, structure):.1%} | {macs:.1%} | {error} | {reasons} |"
    )


def largest_error(
    model: nn.Module, structure: Structure, inputs: tuple[Any, ...], tolerance: float, keeps: int = 3
) -> float:
    """Returns the largest relative error of masked against compact over random keeps."""
    return max(
        verify(model, structure, random_keep(structure, seed), inputs, tolerance=tolerance, seed=seed)
        for seed in range(keeps)
    )


def shortened(reason: str) -> str:
    """Returns a reason without the module it names, so that equal ones add up."""
    words = reason.replace(":", " :").split()
    if " in " in reason:
        at = words.index("in")
        words[at : at + 2] = []
    return " ".join(words).replace(" :", ":").replace("|", "/")


EXPORTS_BY = """Written by `python -m tools.models_table --exports --out docs/exports.md`: random weights, a random half
of the units of every prunable group (widths that suit no runtime, on purpose), the smallest input, float32.

- *parameters*: of the dense network, and what is left.
- *masked*: relative L2 of the compact network against the masked one; a fault here is one of the pruning.
- *ONNX*: relative L2 of ONNX Runtime against PyTorch, the worst of batches 1, 2 and 5; at most 1e-5 is let through.
- *top-1*: share of those inputs whose largest output is the same one.
- *lone norms*: batch norms with no layer to fold into, which became a depthwise convolution of their own.
- *seconds*: export and comparison on the machine that wrote the row.
"""

EXPORTS_HEADER = (
    "| network | input | parameters | MB | nodes | lone norms | masked | ONNX | top-1 | seconds | fails |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def export_cells(name: str) -> str:
    """Prunes a network to half of its units, exports it and compares; returns its row."""
    import onnx

    from halpiee.deploy.onnx import export_onnx

    model, inputs = build(name), example_inputs(name)
    structure = trace(model, inputs)
    keep = random_keep(structure, 0, 0.5)
    masked = verify(model, structure, keep, inputs, tolerance=1e-5)
    dense = sum(p.numel() for p in model.parameters())
    compact = shrink(model, structure, keep).eval()
    del model
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = export_onnx(compact, inputs, Path(folder) / f"{name}.onnx")
        seconds = time.perf_counter() - begun
        nodes = len(onnx.load(done.path).graph.node)
    kept = sum(p.numel() for p in compact.parameters())
    return (
        f"| {name} | {'×'.join(map(str, inputs[0].shape))} | {dense / 1e6:.1f} M → {kept / 1e6:.1f} M | "
        f"{done.size_bytes / 1e6:.1f} | {nodes} | {done.lone_norms or '–'} | {masked:.0e} | {done.rel_l2:.0e} | "
        f"{done.top1_agreement:.0%} | {seconds:.0f} | – |"
    )


SIZES = (64, 96, 128)
"""Images that are tried, in pixels, before a network's own size."""

SMALL = (
    "atto", "femto", "pico", "nano", "xxs", "_xs", "tiny", "_t", "mini", "small", "_s", "050", "18", "b0", "b1",
)  # fmt: skip
"""What names of small networks hold, the smallest first."""

TIMM_BY = f"""Written by `python -m tools.models_table --timm --out docs/models_timm.md`: one small network
of every module of timm, random weights, the smallest image of {SIZES} pixels or its own that runs. Modules that have no
row were not worked out; the command goes on with them.
"""


def timm_names() -> list[str]:
    """Returns one network of every module of timm."""
    import timm

    def size(name: str) -> tuple[int, int]:  # what orders the networks of a family
        return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)), len(name)

    families = (timm.list_models(module=module) for module in timm.list_modules())
    return sorted(min(family, key=size) for family in families if family)


def timm_build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Builds a network with random weights and the smallest image that it takes."""
    import timm

    torch.manual_seed(0)
    model = uneven(timm.create_model(name, pretrained=False).eval())
    settings: Any = model.default_cfg
    channels, own, _ = settings["input_size"]
    for size in (own,) if settings.get("fixed_input_size") else (*SIZES, own):
        x = torch.randn(1, channels, size, size)
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, AssertionError, ValueError):
            continue
        return model, (x,)
    raise ValueError(f"{name} runs on no image of {channels} channels and {SIZES} or {own} pixels")


YOLO = tuple(f"yolo{version}n{task}" for version in ("v8", "11", "26") for task in ("", "-seg", "-cls"))
"""The smallest networks of Ultralytics: three versions, three tasks."""

YOLO_BY = """Written by `python -m tools.models_table --yolo --out docs/models_yolo.md`, with the extra `yolo`:
the networks of Ultralytics' YAML files, random weights, float32; compared at 64 × 64 pixels, traced at their own size.
"""


def yolo_cells(name: str) -> str:
    """Returns the row of one network of Ultralytics: traced at its size, compared at a small one."""
    import ultralytics

    torch.manual_seed(0)
    model = uneven(ultralytics.YOLO(f"{name}.yaml").model.eval())
    size = 224 if name.endswith("-cls") else 640
    start = time.process_time()
    trace(model, (torch.zeros(1, 3, size, size),))
    seconds, shown = time.process_time() - start, f"1×3×{size}×{size}"
    return cells(name, model, (torch.randn(1, 3, 64, 64),), double=False, shown=shown, trace_s=seconds)


MISSING = "| – | – | – |"
"""What only the row of a network without figures holds."""


@dataclass(frozen=True)
class Kind:
    """A table of this script."""

    title: str  # of its file
    about: str  # what its file says of it
    names: Callable[[], Sequence[str]]  # its networks, in the order of the rows
    cells: Callable[[str], str]  # network → its row
    seconds: int  # limit of one network
    header: str = HEADER  # of the table
    counts: str = ""  # a line that counts what came out well, of all rows

    def text(self, rows: list[str]) -> str:
        """Returns the whole file."""
        well = sum(MISSING not in line for line in rows)
        counted = [f"{well} of {len(rows)} {self.counts}.", ""] if self.counts else []
        return "\n".join([f"# {self.title}", "", self.about, *counted, self.header, *rows]) + "\n"

    def refused(self, name: str, reason: str) -> str:
        """Returns the row of a network that gave no figures."""
        columns = self.header.partition("\n")[0].count("|") - 1
        return f"| {name} |{' – |' * (columns - 2)} {reason.replace('|', '/')} |"

    def line(self, name: str) -> str:
        """Returns the row of one network, or its name with what is wrong."""
        try:
            return self.cells(name)
        except (HalpieeError, RuntimeError, ValueError, AssertionError) as error:
            return self.refused(name, said(error))

    def apart(self, name: str, flags: Sequence[str]) -> str:
        """Returns the row of one network, worked out in a process of its own within the limits."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
            resource.setrlimit(
                resource.RLIMIT_CPU, (self.seconds, self.seconds + 1)
            )  # a busy machine adds none
            os.nice(10)

        command = [sys.executable, "-m", "tools.models_table", *flags, name]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return self.refused(name, f"takes more than {self.seconds} s of one core")
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
        if rows:
            return rows[0]
        last = (done.stderr.splitlines() or ["no message"])[-1]
        within = f"limit {MEMORY_LIMIT_BYTES >> 30} GiB"
        return self.refused(name, f"ended with code {done.returncode} ({within}): {last[:200]}")


TRACED = "Networks that halpiee traces, cuts and checks"

KINDS = {
    "": Kind(
        TRACED,
        BY + COLUMNS,
        lambda: [n for n in list_models() if n not in list_models(module=quantization)],
        lambda name: cells(name, build(name), example_inputs(name), double=name in IN_DOUBLE),
        300,
    ),
    "exports": Kind(
        "Pruned networks as ONNX files",
        EXPORTS_BY,
        lambda: list_models(module=models),
        export_cells,
        900,
        EXPORTS_HEADER,
        "networks export and verify",
    ),
    "timm": Kind(
        TRACED, TIMM_BY + COLUMNS, timm_names, lambda name: cells(name, *timm_build(name), double=True), 600
    ),
    "yolo": Kind(TRACED, YOLO_BY + COLUMNS, lambda: YOLO, yolo_cells, 600),
}
"""Flag → table."""


def written(path: Path) -> dict[str, str]:
    """Returns the rows that a table already has, by network."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {line.split("|")[1].strip(): line for line in lines}
    found.pop("network", None)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a table, or prints the rows of the networks named; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks of the table; all of them where none is named")
    parser.add_argument("--out", type=Path, help="file to write; the rows it has are kept")
    parser.add_argument("--again", action="store_true", help="work out rows anew that the file has")
    for flag in filter(None, KINDS):
        parser.add_argument(
            f"--{flag}", dest="kind", action="store_const", const=flag, help=f"the table of {flag}"
        )
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    kind, flags = KINDS[given.kind or ""], [f"--{given.kind}"] if given.kind else []
    listed = list(kind.names())
    chosen = given.names or listed
    unknown = [name for name in chosen if name not in listed]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no network of this table; there are {', '.join(listed)}")
    rows = written(given.out) if given.out is not None else {}
    for name in chosen:
        if name in rows and not given.again:
            continue
        rows[name] = kind.line(name) if given.out is None else kind.apart(name, flags)
        print(rows[name], flush=True)
        if given.out is not None:
            known = written(given.out) | {name: rows[name]}
            text = kind.text([known[n] for n in listed if n in known])
            write(given.out, text, overwrite=True)
    return 1 if any(MISSING in rows[name] for name in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
