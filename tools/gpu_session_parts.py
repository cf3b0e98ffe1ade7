"""What a session on a GPU asks, the most telling first: each part is a function that says its findings as it has them.

``parts`` is the list. A part takes the place, ``say`` (a line of findings) and its arguments. One that comes in pieces
answers ``more`` until nothing is left, one that failed and left its process sound answers why. Imports of torch stand
in the functions: listing the parts needs none.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halpiee.selection.cost import LatencyCost
    from latency import Built, Op


ROOT = Path(__file__).resolve().parents[1]

PRELOADED = ("torch", "halpiee.training.pipeline")
"""What a process imports before its first part: an import of torch that is interrupted cannot be repeated."""

MORE = "more"
"""What a part answers whose next piece waits; it is called again while there is time."""

Say = Callable[..., None]

HERE = "tools.gpu_session_parts:"

LITTLE = f"{HERE}little"

COMPARISON = "benchmarks/compare-gpu.yaml"

SHIPPED = (("resnet50", 224), ("mobilenet_v1", 224), ("resnet20", 32))
"""Networks and image sizes of the profiles that are shipped, in fp16 and fp32 at batch 1, 32 and 256."""


@dataclass(frozen=True)
class Place:
    """Where and with what a part works."""

    out: Path  # folder of everything
    device: str = "cuda"  # `cuda` or `cpu`
    trial: bool = False  # whether networks are little and rounds few
    data: str | None = None  # CIFAR-10, or what `halpiee train --data` takes; None: nothing is trained


@dataclass(frozen=True)
class Part:
    """One question."""

    name: str  # of its files
    call: str  # `module:function`, which takes the place, what says a finding, and the arguments
    seconds: float  # it is told to end after so long
    least: float = 10.0  # it is not begun with fewer seconds left
    needs: tuple[str, ...] = ()  # names of parts without whose end this one is not begun
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the function


def parts(place: Place) -> list[Part]:
    """Returns the list for a place; with CIFAR-10 first what nine minutes hold, then the rest, comparisons last."""
    trial, gpu = place.trial, place.device == "cuda"
    (network, size), many = ((LITTLE, 8), 1) if trial else (SHIPPED[0], 256)
    half = "fp16" if gpu else "fp32"
    found = [
        Part("facts", f"{HERE}facts", 10),
        Part("tests", f"{HERE}tests", 45, 20, arguments={"paths": tests_of(trial)}),
        Part("split", f"{HERE}split", 30, 15, arguments={
            "network": network, "size": size, "precision": half, "cells": 2 if trial else 20}),
    ]  # fmt: skip
    for batch, seconds, networks in {1: (1, 120, 8), many: (many, 60, 2 if trial else 6)}.values():
        found += swept(network, size, half, batch, seconds, networks=networks)
    found += [
        Part("fps", f"{HERE}fps", 50, 20, (f"profile-{named(network, half, many)}",), {
            "network": network, "size": size, "precision": half, "batch": many,
            "budgets": [0.95] if trial else [0.55, 0.30]}),
        Part("checks", f"{HERE}checks", 40, 20, arguments={"precision": half}),
    ]  # fmt: skip
    if place.data is not None:
        found.append(Part("resume", f"{HERE}resume", 30, 15))
    found.append(
        Part(
            "training",
            f"{HERE}training",
            30,
            15,
            needs=(f"profile-{named(network, half, 1)}",) if trial else (),
        )
    )
    if gpu and find_spec("tensorrt") is not None:
        command = {"paths": ["tests/tensorrt", "-m", "tensorrt"]}
        found.append(Part("tests-tensorrt", f"{HERE}tests", 60, 30, arguments=command))
        found.append(Part("tensorrt", f"{HERE}profile", 120, 30, arguments={
            "network": network, "size": size, "precision": half, "batch": 1, "backend": "tensorrt"}))  # fmt: skip
    if not trial:
        found += [part for part in shipped(half) if part.name not in {p.name for p in found}]
    if place.data is not None:
        found.append(Part("compare", f"{HERE}compare", 480, 5 if trial else 60))
    return [replace(part, seconds=300.0) for part in found] if trial else found


def little(num_classes: int = 10, width: float = 1.0) -> Any:
    """Returns the network of a trial."""
    from torch import nn

    wide = round(48 * width)
    return nn.Sequential(
        nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes),
    )  # fmt: skip


def named(network: str, precision: str, batch: int) -> str:
    """Returns what the files of a network are called."""
    return f"{network.rpartition(':')[2]}-{precision}-b{batch}"


def tests_of(trial: bool) -> list[str]:
    """Returns what pytest is given: the tests of graphs, arithmetic and memory; of a trial, those that need no GPU."""
    if trial:
        return ["tests/latency/test_cuda.py"]
    return ["tests/latency/test_cuda.py", "tests/deploy/test_sparse.py", "-m", "gpu"]


def swept(
    network: str, size: int, precision: str, batch: int, seconds: float, *, networks: int
) -> list[Part]:
    """Returns a profile, and random shrunk networks beside what it predicts."""
    what = {"network": network, "size": size, "precision": precision, "batch": batch}
    name = named(network, precision, batch)
    more = {**what, "networks": networks}
    return [
        Part(f"profile-{name}", f"{HERE}profile", seconds, min(20.0, seconds), arguments=what),
        Part(f"predicted-{name}", f"{HERE}predicted", 50, 20, (f"profile-{name}",), more),
    ]


def shipped(half: str) -> Iterator[Part]:
    """Yields the profiles that are to be shipped, and what they predict."""
    for (network, size), precision, batch in itertools.product(SHIPPED, (half, "fp32"), (1, 32, 256)):
        yield from swept(network, size, precision, batch, 120, networks=8)


def facts(place: Place, say: Say) -> None:
    """What is here: the GPU as the driver describes it, and versions."""
    names = ("halpiee", "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-python")
    versions: dict[str, str | None] = {}
    for name in (*names, "nvidia-ml-py"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    say(python=sys.version.split()[0], cores=os.cpu_count(), **versions)
    from latency.backends.torch import Torch

    say(**Torch(device=place.device).environment())
    if place.device == "cuda" and shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, check=False)
        (place.out / "nvidia-smi.txt").write_text(done.stdout + done.stderr)


def tests(place: Place, say: Say, *, paths: list[str]) -> str | None:
    """Runs tests by path, in a process of their own, their warnings said and no errors."""
    del place
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-W", "default", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    lines = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            say(failed=line)
    say(code=done.returncode, summary=lines[-1] if lines else "")
    well = done.returncode in (0, 5)  # 5: nothing was selected
    return None if well else f"pytest ended with code {done.returncode}; the log has its words"


def network_of(network: str, size: int, precision: str, batch: int, device: str) -> tuple[Any, ...]:
    """Returns the network, what it reads, its structure in that precision, and what it is timed on."""
    import torch

    from halpiee.structure.trace import trace
    from halpiee.zoo import build
    from tools.bench_latency import Slopes

    torch.manual_seed(0)
    model = build(network).eval()
    example = (torch.randn(batch, 3, size, size),)
    half = precision in ("fp16", "bf16")
    target = Slopes("torch", device, precision, half)  # type: ignore[arg-type]
    return model, example, target.of(trace(model, example)), target


def file_of(place: Place, network: str, precision: str, batch: int) -> Path:
    """Returns the file of a profile."""
    return place.out / f"{named(network, precision, batch)}.profile.jsonl"


def split(place: Place, say: Say, *, network: str, size: int, precision: str, cells: int) -> None:
    """Says where the seconds of a build go, with and without cuDNN's search and the profiler."""
    import torch

    from latency.backends.torch.network import restored

    _, _, structure, target = network_of(network, size, precision, 1, place.device)
    ops = list(dict.fromkeys(timed.op for timed in structure.ops if timed.op.spec.window))[:cells]
    total: dict[str, float] = defaultdict(float)
    for search, profiler in ((True, True), (True, False), (False, False)):
        with restored():
            backend = phased(target, profiler=profiler)
            torch.backends.cudnn.benchmark = search
            for op in ops:
                spent = timed_build(backend, op)
                say(
                    op=op.key(),
                    search=search,
                    profiler=profiler,
                    **{k: round(v, 6) for k, v in spent.items()},
                )
                for phase, seconds in spent.items():
                    total[
                        f"{phase}{'' if search else ', no search'}{'' if profiler else ', no profiler'}"
                    ] += seconds
    say(seconds={phase: round(seconds, 6) for phase, seconds in total.items()}, cells=len(ops))


def phased(target: Any, *, profiler: bool) -> Any:
    """Returns a torch backend that notes in ``spent`` what the phases of a build take, each waited for."""
    import torch

    from latency.backends.torch import Torch

    class Phased(Torch):
        """The backend, with a stopwatch around every phase."""

        spent: dict[str, float]

        @contextmanager
        def phase(self, name: str) -> Iterator[None]:
            """Adds what happens inside to a phase."""
            begun = time.perf_counter()
            yield
            if self.device != "cpu":
                torch.cuda.synchronize()
            self.spent[name] += time.perf_counter() - begun

        def tensor(self, *shape: int) -> Any:
            with self.phase("allocate"):
                return super().tensor(*shape)

        def searched(self, calls: Any, times: int) -> None:
            with self.phase("search"):
                super().searched(calls, times)

        def recorded(self, calls: Any) -> Any:
            with self.phase("capture"):
                return super().recorded(calls)

        def kernels(self, graph: Any) -> str | None:
            with self.phase("profiler"):
                return super().kernels(graph) if profiler else None

    found = Phased(device=target.device, precision=target.precision, channels_last=target.channels_last)
    found.spent = defaultdict(float)
    return found


def timed_build(backend: Any, op: Op) -> dict[str, float]:
    """Returns seconds of the phases of one build, of its timing, and of all together."""
    from latency.timing.timer import time_call

    backend.spent.clear()
    begun = time.perf_counter()
    built: Built = backend.build(op)
    built_s = time.perf_counter() - begun
    us = time_call(built.run, minus=built.minus, clock=backend.clock()).us / built.copies
    whole = time.perf_counter() - begun
    return {**backend.spent, "build": built_s, "timing": whole - built_s, "whole": whole, "us": us}


def profile(
    place: Place, say: Say, *, network: str, size: int, precision: str, batch: int, backend: str = "torch"
) -> None:
    """Sweeps a network's ops; a sweep that was stopped goes on in its file."""
    import latency
    from halpiee.selection.options import fixed_sides

    _, _, structure, target = network_of(network, size, precision, batch, place.device)
    settings: dict[str, Any] = target.settings
    if backend != "torch":
        settings = {"precision": precision}
    begun, said = time.monotonic(), 0.0

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(done=done, total=total)

    found = latency.sweep(
        [timed.op for timed in structure.ops],
        backend=backend, settings=settings, fixed=fixed_sides(structure), progress=report,
        path=file_of(place, network, precision if backend == "torch" else f"{backend}-{precision}", batch),
    )  # fmt: skip
    left = found.environment.get("not_measured", [])
    say(cells=len(found.cells), sweep_s=round(time.monotonic() - begun, 1), not_measured=left)


def predicted(
    place: Place, say: Say, *, network: str, size: int, precision: str, batch: int, networks: int
) -> None:
    """Says how far predictions are from random shrunk networks as CUDA graphs; asked: median 3 %, worst 7 %."""
    from tools.bench_latency import row

    *_, target = network_of(network, size, precision, batch, place.device)
    path = file_of(place, network, precision, batch)
    say(**row(network, size, batch, {}, networks, 9 if place.trial else 20, path, target))


def fps(
    place: Place, say: Say, *, network: str, size: int, precision: str, batch: int, budgets: list[float]
) -> None:
    """Says images per second of the dense network and of two plans, as graphs and call by call."""
    import latency
    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.shrink import keep_first, shrink

    model, example, structure, target = network_of(network, size, precision, batch, place.device)
    cost = LatencyCost(structure, latency.Profile.load(file_of(place, network, precision, batch)))
    nets = {"dense": model}
    asked = {"dense": 1.0}
    for budget in budgets:
        counts = planned(cost, budget)
        asked[f"{budget:g}"] = cost.raw(counts) / cost.dense_us
        nets[f"{budget:g}"] = shrink(model, structure, keep_first(structure, counts))
    rounds = 9 if place.trial else 30
    ready = {name: target.call(net, example) for name, net in nets.items()}
    graphs = target.measured_us(ready, example, rounds)
    eager = replace(target, options={"mode": "eager"})
    found = eager.compare({n: eager.ready(net, example) for n, net in nets.items()}, example, rounds=rounds)
    for name in nets:
        us = found[name].median_us
        say(
            network=name, predicted_share=round(asked[name], 4), graph_us=round(graphs[name], 1),
            graph_share=round(graphs[name] / graphs["dense"], 4), eager_us=round(us, 1),
            images_per_s=round(batch / us * 1e6), speedup=round(found["dense"].median_us / us, 3),
        )  # fmt: skip


def planned(cost: LatencyCost, budget: float) -> dict[str, int]:
    """Returns the widths of a share of the dense latency, or the narrowest; every unit of a group is worth the same."""
    import torch

    from halpiee.selection.choose import select
    from tools.bench_latency import narrowest_us

    budget_us = max(budget * cost.dense_us, 1.001 * narrowest_us(cost))
    scores = {g.name: torch.ones(g.size) for g in cost.structure.prunable}
    counts: dict[str, int] = dict(select(scores, cost, budget_us).counts)
    return counts


def checks(place: Place, say: Say, *, precision: str) -> None:
    """Slope beside event, the choices of two processes, and a staircase (``tools.gpu_checks``)."""
    from tools.gpu_checks import Convolutions, measured

    if place.trial:
        given = Convolutions(device=place.device, precision=precision, size=4)
        found = measured(given, builds=1, widths=(8, 16))
    else:
        found = measured(Convolutions(device=place.device, precision=precision))
    for one in found["slope_and_event"]:
        say(**one)
    say(builds=found["builds"], **found["staircase"])


def resume(place: Place, say: Say) -> None:
    """Trains IEE on images, stops it twice and goes on: what mixed devices, and how many steps a second."""
    from halpiee.options import nested
    from halpiee.training.config import Settings
    from halpiee.training.pipeline import execute
    from halpiee.training.preflight import open_run

    folder, stops = place.out / "resumed", (4, 8) if place.trial else (30, 60)
    given: dict[str, Any] = {
        "model": LITTLE if place.trial else "resnet20", "data": place.data, "device": place.device,
        "method": "iee", "sparsity": 0.9,
        "epochs": 2, "batch_size": 128, "baseline": False, "cycles": 8 if not place.trial else 1,
    }  # fmt: skip
    settings = Settings.from_dict(nested(Settings, given, {}), where="the part resume")
    shutil.rmtree(folder, ignore_errors=True)  # of a try that ran out of time
    for stop in stops:
        begun = time.monotonic()
        run = open_run(settings, folder, stopped_at(stop), resume=(folder / "settings.json").is_file())
        try:
            execute(run)
        except KeyboardInterrupt:
            say(stopped_at=stop, seconds=round(time.monotonic() - begun, 2))
        else:
            raise RuntimeError(f"the training was to stop at step {stop}, and ended")


def stopped_at(stop: int) -> Any:
    """Returns what a run reports to; it interrupts the run at a step, as a user does."""
    from halpiee.training.job import Silent

    class Stopping(Silent):
        """Interrupts the training once."""

        def training(
            self, label: str, step: int, total: int, entry: dict[str, Any] | None, pace: str
        ) -> None:
            """Interrupts at the step."""
            if label == "pruned" and step == stop and entry is None:
                os.kill(os.getpid(), signal.SIGINT)

    return Stopping()


def training(place: Place, say: Say) -> None:
    """Steps dense, masked and shrunk, and what changes of the masks take (``tools.bench_training``)."""
    from tools import bench_training

    how = ["--pairs", "30"]
    if place.trial:
        path = file_of(place, LITTLE, "fp32", 1)
        how = ["--model", LITTLE, "--size", "8", "--profile", str(path), "--batch-size", "8", "--pairs", "5"]
        how += ["--changes", "4"]
    for table, rows in bench_training.main(["--device", place.device, "--no-record", *how]).items():
        for one in rows:
            say(table=table, **one)


def compare(place: Place, say: Say) -> str | None:
    """Does one cell of the comparison on CIFAR-10, and answers ``more`` while there are others."""
    from halpiee.compare.cells import Ground, carry_out, cells
    from halpiee.compare.comparison import Comparison, read_comparison
    from halpiee.compare.results import render_markdown, sheet_of
    from halpiee.training.job import Silent

    out = place.out / "compare"
    out.mkdir(exist_ok=True)
    if place.trial:
        asked = Comparison(
            network=LITTLE, data=str(place.data), epochs=1, batch_size=256, budgets=(0.8,),
            seeds=(0,), contestants=("dense", "uniform"),
        )  # fmt: skip
    else:
        asked = replace(read_comparison(ROOT / COMPARISON), data=str(place.data))
    asked = replace(asked, device=place.device)
    sheet = sheet_of(out)
    done = {row.key for row in sheet.rows()} if sheet.path.is_file() else set()
    left = [cell for cell in cells(asked) if cell.name not in done]
    if left:
        begun = time.monotonic()
        row = carry_out(left[0], Ground.of(asked, out, Silent()), out, Silent())
        assert row is not None, "nobody else works here"
        (out / "comparison.md").write_text(render_markdown(sheet.rows()))
        say(
            cell=row.key, accuracy=row.accuracy, latency_us=row.latency_us, dense_us=row.dense_us,
            seconds=round(time.monotonic() - begun, 1), left=len(left) - 1,
        )  # fmt: skip
    return MORE if len(left) > 1 else None
