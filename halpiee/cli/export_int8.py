"""``halpiee export --int8``: a file in int8, with its accuracy and its speed beside those of the fp32 file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee import ranges
from halpiee.cli.options import Answered
from halpiee.cli.output import answer, say
from halpiee.errors import UsageError
from halpiee.inputs import spelled
from halpiee.options import option
from halpiee.shared_options import Seeded

if TYPE_CHECKING:
    from halpiee.cli.networks import Network
    from halpiee.data.data import Data
    from halpiee.tasks import Task


ONNX = "ONNX files"
"""Heading of options."""

BATCH = 32
"""Images of a calibration batch."""


@dataclass(frozen=True, kw_only=True)
class Quantising(Seeded, Answered):
    """What an int8 file is calibrated and judged on."""

    int8: bool = option(
        False,
        "Quantise the file to int8, calibrated on images of --data; its accuracy is shown beside fp32.",
        ONNX,
    )
    data: str | None = option(
        None,
        "Images that int8 is calibrated and judged on: as for `halpiee train`.",
        ONNX,
        unset="the run's own",
    )
    images: ranges.Images = option(256, "Training images that int8 is calibrated on.", ONNX)


def export_quantised(
    given: Quantising, out: Path, network: Network, *, named: str, ends: Mapping[str, Any]
) -> None:
    """Writes the file and answers: figures on the test set, and latencies, of int8 and fp32.

    ``named`` is the network as it was typed, ``ends`` is as ``export_onnx`` takes it.
    """
    import latency
    from halpiee.deploy.int8 import FileNetwork, export_int8
    from halpiee.deploy.onnx import stamp
    from halpiee.training.loop import judged

    data, task = _data(given, network, named)
    if data.inputs or tuple(network.example[0].shape[1:]) != tuple(data.shape):
        raise UsageError(
            f"--int8 was asked of a network of {tuple(network.example[0].shape[1:])}, and the images of "
            f"{data.name} are {spelled(data.inputs or data.shape)}; give --size the size of the images, of one input"
        )
    with tempfile.TemporaryDirectory(prefix="halpiee.fp32.") as folder:
        beside = Path(folder) / "fp32.onnx"
        done = export_int8(
            network.model,
            network.example,
            out,
            _images(data, given.images, given.seed),
            beside=beside,
            metadata=network.metadata,
            seed=given.seed,
            **ends,
        )
        figures = {}
        for name, path in (("fp32", beside), ("int8", out)):
            figures[name] = judged(FileNetwork(path), data, task, batch_size=done.fp32.fixed_batch or 64)
        timed = latency.compare({"fp32": beside, "int8": out}, rounds=30)
    us = {name: timed[name].median_us for name in ("fp32", "int8")}
    speed_up = timed.ratio("fp32", "int8")
    batch = done.fp32.fixed_batch or 1
    stamp(
        out,
        {
            task.figure: figures["int8"][task.figure],
            f"{task.figure}_fp32": figures["fp32"][task.figure],
            "measured_us": us["int8"],
            "measured_us_fp32": us["fp32"],
            "batch": batch,
            "threads": 1,
            "device": latency.environment()["device"],
            "backend": "onnxruntime",
        },
    )
    result: dict[str, Any] = {
        **asdict(done),
        "figure": task.figure,
        "figures": figures,
        "latency_us": us,
        "fps": {name: batch * 1e6 / value for name, value in us.items()},
        "speedup": speed_up.median,
        "speedup_ci": [speed_up.lo, speed_up.hi],
        "notes": [*network.notes, *done.fp32.notes],
    }
    answer(result, given.as_json, lambda: _show(out, task, result))


def _show(out: Path, task: Task, result: dict[str, Any]) -> None:
    say(
        f"{out}: {result['size_bytes'] / 1e6:.1f} MB, int8, calibrated on {result['images']} images; relative L2 "
        f"to fp32 {result['rel_l2']:.1e}"
    )
    for name in ("fp32", "int8"):
        say(
            f"  {name}: {task.title.lower()} {result['figures'][name][task.figure]:.2%}, "
            f"{result['latency_us'][name]:.0f} µs, {result['fps'][name]:,.0f} FPS"
        )
    low, high = result["speedup_ci"]
    say(f"  int8 is {result['speedup']:.2f} times as fast ({low:.2f} … {high:.2f}), one thread, batch 1")
    for note in result["notes"]:
        say(note)


def _data(given: Quantising, network: Network, named: str) -> tuple[Data, Task]:
    """Returns the data and the task: of the run, or as typed."""
    from halpiee.tasks import named as task_named
    from halpiee.training.job import Run

    if network.run is not None:
        run = network.run
        if given.data is not None:
            run = Run(replace(run.settings, data=given.data), run.folder, run.talk)
        return run.data, run.task
    if given.data is None:
        raise UsageError(
            f"--int8 was asked of {named}, which has no data of its own; add --data, a folder of "
            "images, cifar10 or digits"
        )
    from halpiee.data.opening import open_data

    task = task_named("classification")
    height, width = network.example[0].shape[2:]
    if height != width:
        raise UsageError(
            f"--int8 was asked of images of {height}×{width}; data are read as squares: give one --size"
        )
    data = open_data(task.source(given.data, int(height)), kind=task.kind)
    task.prepare(data, network.model)
    return data, task


def _images(data: Data, count: int, seed: int) -> Any:
    """Yields training images, normalised and not changed at random."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.n_train, generator=generator)[:count]
    for part in torch.split(order, BATCH):
        yield data.at(part)[0]
