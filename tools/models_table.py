"""Traces, cuts and checks networks, a row of a table each: of torchvision (docs/models.md), timm, or Ultralytics.

Each network has a process of its own, with random weights and the smallest input it takes; one that takes too
long or too much memory is named with that reason. With ``--here`` all have this one, at low priority, and memory is
not limited. The file grows by a row per network, and a second call goes on where the first one stopped::

    python -m tools.models_table --out docs/models.md
    python -m tools.models_table --out docs/models.md --again vit_b_16 swin_t
    python -m tools.models_table resnet18 vgg16
    python -m tools.models_table --timm --here --out docs/models_timm.md    # one small network of every family of timm
    python -m tools.models_table --yolo --here --out docs/models_yolo.md    # the nine smallest of Ultralytics
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import (
    detection,
    get_model,
    list_models,
    optical_flow,
    quantization,
    segmentation,
    video,
)

from halpiee.errors import HalpieeError
from halpiee.structure import Structure, explain, trace, verify
from latency._files import write

__all__ = ["GrowingTable"]


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


@dataclass(frozen=True)
class Row:
    """The figures of one network.

    Attributes:
        name: its name.
        shape: input that was used.
        trace_s: processor seconds of the trace, construction excluded.
        prunable: prunable groups.
        groups: all groups.
        parameter_share: share of the parameters in tensors that a prunable unit is in.
        macs_share: share of the multiply-accumulates in layers with a prunable group on either side.
        error: largest relative error of masked against compact, over the keeps tried.
        error_double: the same in double precision, for some networks.
        frozen: reasons with the number of groups they hold.
    """

    name: str
    shape: str
    trace_s: float
    prunable: int
    groups: int
    parameter_share: float
    macs_share: float
    error: float
    error_double: float | None
    frozen: dict[str, int]

    def cells(self) -> str:
        """Returns the row of the table."""
        frozen = "; ".join(f"{reason} ({count})" for reason, count in self.frozen.items()) or "–"
        double = "" if self.error_double is None else f", fp64 {self.error_double:.0e}"
        return (
            f"| {self.name} | {self.shape} | {self.trace_s:.1f} | {self.prunable}/{self.groups} | "
            f"{self.parameter_share:.1%} | {self.macs_share:.1%} | {self.error:.0e}{double} | {frozen} |"
        )


HEADER = (
    "| network | input | trace, s | groups prunable | parameters prunable | MACs prunable | rel. error "
    "| frozen |\n"
    "|---|---|---|---|---|---|---|---|"
)


def names() -> list[str]:
    """Returns torchvision's networks, the quantised ones left out."""
    return [n for n in list_models() if n not in list_models(module=quantization)]


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
    if name in list_models(module=optical_flow):
        return (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if name in list_models(module=video):
        return (
            (torch.randn(1, 3, 16, 224, 224),)
            if name.startswith(("mvit", "s3d"))
            else (torch.randn(1, 3, 8, 64, 64),)
        )
    size = 224 if name.startswith("vit") else IMAGE_SIZES.get(name, 64)
    return (torch.randn(1, 3, size, size),)


def random_keep(structure: Structure, seed: int) -> dict[str, Tensor]:
    """Draws 30 to 70 % of every prunable group, at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.prunable:
        share = 0.3 + 0.4 * torch.rand((), generator=generator)
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (1,), generator=generator)] = True
        keep[group.name] = mask
    return keep


def parameter_share(model: nn.Module, structure: Structure) -> float:
    """Returns the share of the parameters in tensors that a prunable unit is in."""
    prunable = {u for g in structure.prunable for u in range(g.start, g.start + g.size)}
    cut = {slot.tensor for slot in structure.slots if prunable.intersection(slot.units.tolist())}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(n for name, n in sizes.items() if name in cut) / sum(sizes.values())


def row(name: str, model: nn.Module, inputs: tuple[Any, ...], *, double: bool, keeps: int = 3) -> Row:
    """Traces one network and checks it with random keeps, where asked in double precision too."""
    start = time.process_time()
    structure = trace(model, inputs)
    seconds = time.process_time() - start
    error = largest_error(model, structure, inputs, keeps, 1e-5)
    error_double = None
    if double:
        wide = tuple(x.double() for x in inputs)
        error_double = largest_error(model.double(), structure, wide, keeps, 1e-12)
    frozen = Counter(g.reason for g in structure.groups if g.reason is not None and g.reason not in PLAIN)
    general = Counter({shortened(reason): 0 for reason in frozen})
    for reason, count in frozen.items():
        general[shortened(reason)] += count
    first = next(t for t in flat(inputs))
    return Row(
        name=name,
        shape="×".join(str(s) for s in first.shape),
        trace_s=seconds,
        prunable=len(structure.prunable),
        groups=len(structure.groups),
        parameter_share=parameter_share(model, structure),
        macs_share=explain(structure).prunable_macs_share,
        error=error,
        error_double=error_double,
        frozen=dict(general),
    )


def largest_error(
    model: nn.Module, structure: Structure, inputs: tuple[Any, ...], keeps: int, tolerance: float
) -> float:
    """Returns the largest relative error of masked against compact over random keeps."""
    return max(
        verify(model, structure, random_keep(structure, seed), inputs, tolerance=tolerance, seed=seed)
        for seed in range(keeps)
    )


def flat(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of nested inputs."""
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from flat(item)


def shortened(reason: str) -> str:
    """Returns a reason without the module it names, so that equal ones add up."""
    words = reason.replace(":", " :").split()
    if " in " in reason:
        at = words.index("in")
        words[at : at + 2] = []
    return " ".join(words).replace(" :", ":").replace("|", "/")


def text(rows: list[str], introduction: str = BY + COLUMNS) -> str:
    """Returns the whole file."""
    return (
        "\n".join(["# Networks that halpiee traces, cuts and checks", "", introduction, HEADER, *rows]) + "\n"
    )


MISSING = "| – | – | – |"
"""What only the row of a network without figures holds."""


@dataclass(frozen=True)
class GrowingTable:
    """A table with a row per network.

    Attributes:
        module: the script and its flags, as ``python -m`` takes them.
        about: its description.
        names: every network, in the order of the rows.
        cells: network → its row.
        text: rows in order → the whole file.
        columns: columns of a row.
        seconds: limit of one network.
        memory_bytes: limit of one network's data; none where there is no need.
    """

    module: Sequence[str]
    about: str
    names: Sequence[str]
    cells: Callable[[str], str]
    text: Callable[[list[str]], str]
    columns: int
    seconds: float
    memory_bytes: int | None = None

    def line(self, name: str) -> str:
        """Returns the row of one network, or its name with what is wrong."""
        try:
            return self.cells(name)
        except (HalpieeError, RuntimeError, ValueError, AssertionError) as error:
            return self.refused(name, " ".join(str(error).split())[:300])

    def in_time(self, name: str) -> str:
        """Returns the row of one network, worked out in this process within the limit of time."""

        def late(signum: int, frame: object) -> None:
            raise ValueError(f"takes more than {self.seconds:g} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(int(self.seconds))
        try:
            return self.line(name)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def refused(self, name: str, reason: str) -> str:
        """Returns the row of a network that gave no figures."""
        return f"| {name} |{' – |' * (self.columns - 2)} {reason.replace('|', '/')} |"

    def apart(self, name: str) -> str:
        """Returns the row of one network, worked out in a process of its own within the limits."""

        def limit() -> None:
            if self.memory_bytes is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (self.memory_bytes, self.memory_bytes))

        command = [sys.executable, "-m", *self.module, name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.seconds, preexec_fn=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return self.refused(name, f"takes more than {self.seconds} s")
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
        if rows:
            return rows[0]
        last = (done.stderr.splitlines() or ["no message"])[-1]
        within = "" if self.memory_bytes is None else f" (limit {self.memory_bytes >> 30} GiB)"
        return self.refused(name, f"ended with code {done.returncode}{within}: {last[:200]}")

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Writes the table, or prints the rows of the networks named; returns the exit code."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("names", nargs="*", help="networks of the table; all of them where none is named")
        parser.add_argument("--out", type=Path, help="file to write; the rows it has are kept")
        parser.add_argument("--again", action="store_true", help="work out rows anew that the file has")
        parser.add_argument("--here", action="store_true", help="in this process, at low priority")
        given = parser.parse_args(arguments)
        warnings.simplefilter("ignore")
        chosen = given.names or list(self.names)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            parser.error(f"{', '.join(unknown)}: no network of this table; there are {', '.join(self.names)}")
        rows = written(given.out) if given.out is not None else {}
        work = self.apart if given.out is not None else self.line
        if given.here:
            os.nice(10)
            work = self.in_time
        for name in chosen:
            if name in rows and not given.again:
                continue
            rows[name] = work(name)
            print(rows[name], flush=True)
            if given.out is not None:
                known = written(given.out) | {name: rows[name]}
                text = self.text([known[n] for n in self.names if n in known])
                write(given.out, text, overwrite=True)
        return 1 if any(MISSING in rows[name] for name in chosen) else 0


def written(path: Path) -> dict[str, str]:
    """Returns the rows that a table already has, by network."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {line.split("|")[1].strip(): line for line in lines}
    found.pop("network", None)
    return found


SIZES = (64, 96, 128)
"""Images that are tried, in pixels, before a network's own size."""

SMALL = tuple(
    [
        "atto",
        "femto",
        "pico",
        "nano",
        "xxs",
        "_xs",
        "tiny",
        "_t",
        "mini",
        "small",
        "_s",
        "050",
        "18",
        "b0",
        "b1",
    ]
)
"""What names of small networks hold, the smallest first."""

TIMM_BY = f"""Written by `python -m tools.models_table --timm --here --out docs/models_timm.md`: one small network
of every module of timm, random weights, the smallest image of {SIZES} pixels or its own that runs. Modules that have no
row were not worked out; the command goes on with them.
"""


def size_of(name: str) -> tuple[int, int]:
    """Returns what orders the networks of a family, small ones first."""
    return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)), len(name)


def timm_names() -> list[str]:
    """Returns one network of every module of timm."""
    import timm

    families = (timm.list_models(module=module) for module in timm.list_modules())
    return sorted(min(family, key=size_of) for family in families if family)


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


def timm_cells(name: str) -> str:
    """Returns the row of one network."""
    model, inputs = timm_build(name)
    return row(name, model, inputs, double=True).cells()


YOLO = tuple(f"yolo{version}n{task}" for version in ("v8", "11", "26") for task in ("", "-seg", "-cls"))
"""The smallest networks of Ultralytics: three versions, three tasks."""

YOLO_BY = """Written by `python -m tools.models_table --yolo --here --out docs/models_yolo.md`, with the extra `yolo`:
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
    seconds = time.process_time() - start
    found = row(name, model, (torch.randn(1, 3, 64, 64),), double=False)
    return replace(found, shape=f"1×3×{size}×{size}", trace_s=seconds).cells()


@dataclass(frozen=True)
class Kind:
    """A table of this script.

    Attributes:
        about: what its file says of it.
        names: its networks.
        cells: network → its row.
        seconds: limit of one network.
    """

    about: str
    names: Callable[[], Sequence[str]]
    cells: Callable[[str], str]
    seconds: float


KINDS = {
    "": Kind(
        BY,
        names,
        lambda name: row(name, build(name), example_inputs(name), double=name in IN_DOUBLE).cells(),
        300,
    ),
    "--timm": Kind(TIMM_BY, timm_names, timm_cells, 600),
    "--yolo": Kind(YOLO_BY, lambda: YOLO, yolo_cells, 600),
}
"""Flag → table."""


def main(arguments: Sequence[str]) -> int:
    """Writes the table of torchvision's networks, or with a flag that of timm or Ultralytics; returns the exit code."""
    flag = next((word for word in arguments if word in KINDS), "")
    kind = KINDS[flag]
    table = GrowingTable(
        module=("tools.models_table", flag) if flag else ("tools.models_table",),
        about=str(__doc__),
        names=kind.names(),
        cells=kind.cells,
        text=lambda rows: text(rows, kind.about + COLUMNS),
        columns=8,
        seconds=kind.seconds,
        memory_bytes=MEMORY_LIMIT_BYTES,
    )
    return table.main([word for word in arguments if word != flag])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
