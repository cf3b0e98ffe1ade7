"""``halpiee bench``: networks of any kind timed side by side, interleaved; latency or throughput, never mixed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from halpiee import ranges
from halpiee.cli.options import SIZES, Ranged, examples, input_size, json_option
from halpiee.cli.output import answer, say
from halpiee.errors import UsageError
from latency._files import check_place

if TYPE_CHECKING:
    from halpiee.cli.bench_entries import Contestant
    from halpiee.deploy.runners import Runner

__all__ = ["command"]

PROTOCOLS: dict[str, dict[str, Any]] = {
    "halp": {"batch": "256", "rounds": 30, "warm_up": 10, "precision": "fp32"}
}
"""Settings of published measurements. HALP: PyTorch eager, fp32, NCHW, batch 256, mean of 30 runs after 10."""


@click.command(
    "bench",
    epilog=examples(
        "halpiee bench runs/demo/dense.onnx runs/demo/pruned.onnx --against dense",
        "halpiee bench runs/demo runs/demo@compile runs/demo/pruned.onnx --against dense --csv demo.csv",
        "halpiee bench small.onnx dense.onnx --batch 1,8 --threads 2",
        "halpiee bench small.onnx dense.onnx --mode throughput --callers 2",
        "halpiee bench runs/demo --against dense --protocol halp",
        "halpiee bench resnet50 half.json --device cuda --protocol halp",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--against", help="Name that ratios are taken against; `dense` is found beside a run.  [default: first]"
)
@click.option(
    "--batch", help="Images per inference: 1, or several: 1,8,32.  [default: 1, or all that a file takes]"
)
@click.option(
    "--threads", default=1, type=Ranged(ranges.Threads), show_default=True, help="Threads of the runtime."
)
@click.option(
    "--rounds", default=30, type=Ranged(ranges.Rounds), show_default=True, help="Interleaved rounds."
)
@click.option(
    "--mode",
    default="latency",
    show_default=True,
    type=click.Choice(["latency", "throughput"]),
    help="One call after the other, or as many images as can be had.",
)
@click.option(
    "--callers",
    default=1,
    type=Ranged(ranges.Threads),
    show_default=True,
    help="Threads that call at once; for throughput.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of modules; a file must have it.  [default: fp32, files as they are]",
)
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of modules."
)
@click.option(
    "--protocol", type=click.Choice(sorted(PROTOCOLS)), help="As published: sets batch, rounds, precision."
)
@click.option(
    "--size",
    help=f"Image size of a MODEL, of a plan instead of its own, or of a file that leaves it open: {SIZES}.",
)
@click.option("--width", type=Ranged(ranges.Width), help="Width multiplier of a zoo network.")
@click.option("--classes", type=Ranged(ranges.Classes), help="Classes of a MODEL, if not its own default.")
@click.option(
    "--seconds",
    default=60.0,
    type=Ranged(ranges.Seconds),
    show_default=True,
    help="Fewer rounds, but nine, beyond this per batch size.",
)
@click.option(
    "--trust-engine", is_flag=True, help="Load engines that halpiee did not build: they are executable."
)
@click.option(
    "--trust-plan", is_flag=True, help="Let plans name a package.module:function to call, of any arguments."
)
@click.option(
    "--trust-run", is_flag=True, help="Let settings.json of runs from elsewhere name such functions."
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also as a new CSV file.")
@json_option
def command(
    files: tuple[str, ...],
    against: str | None,
    batch: str | None,
    threads: int,
    rounds: int,
    mode: Literal["latency", "throughput"],
    callers: int,
    precision: Literal["fp32", "fp16", "bf16"] | None,
    device: str,
    protocol: str | None,
    size: str | None,
    width: float | None,
    classes: int | None,
    seconds: float,
    trust_engine: bool,
    trust_plan: bool,
    trust_run: bool,
    csv_file: Path | None,
    as_json: bool,
) -> None:
    """Time networks side by side: latency with its spread, FPS, and the ratio with its interval.

    FILE is an ONNX file, a TensorRT engine, the folder of a run (its compact network), a plan (what it leaves, with
    initial weights), or a MODEL. `FILE@HOW` says how it runs:
    an ONNX file @cpu, @cuda or @tensorrt, the others @eager (the default), @compile or @onnx.
    """
    warm_up: int | None = None
    if protocol is not None:
        preset = PROTOCOLS[protocol]
        batch, rounds, warm_up = preset["batch"], preset["rounds"], preset["warm_up"]
        precision, seconds = preset["precision"], float("inf")
        if mode != "latency":
            raise UsageError(
                f"--protocol {protocol} was asked with --mode {mode}; it is one of latency, leave --mode out"
            )
    batches = None if batch is None else _batches(batch)
    if callers > 1 and mode == "latency":
        raise UsageError(
            f"--callers {callers} was asked of a latency; add --mode throughput, or leave --callers out"
        )
    if csv_file is not None:
        check_place(csv_file)
    from halpiee.cli.bench_entries import contestants
    from halpiee.cli.bench_output import show, write_csv

    shape = None if size is None else input_size(size)
    trust = {"engine": trust_engine, "plan": trust_plan, "run": trust_run}
    field, base = contestants(files, against, shape=shape, width=width, classes=classes, trust=trust)
    notes = [note for c in field for note in c.notes]
    if batches is None:
        own = {c.fixed_batch for c in field if c.fixed_batch is not None}
        batches = sorted(own)[:1] or [1]
        if own:
            notes.append(f"--batch {batches[0]}: a file that is named takes no other")
    rows: list[dict[str, Any]] = []
    clock = "wall"
    for images in batches:
        runners = {
            c.name: c.runner(batch=images, threads=threads, precision=precision, device=device) for c in field
        }
        if mode == "latency":
            found, clock = _latencies(runners, field, base, images, threads, rounds, seconds, warm_up)
        else:
            found = _throughputs(runners, base, images, callers, rounds, seconds)
        rows += found
        del runners
    for warning in [*notes, *(w for row in rows for w in row.pop("warnings", ()))]:
        say(warning)
    result = {
        "mode": mode,
        "protocol": protocol,
        "against": base,
        "batch": batches[0],
        "batches": batches,
        "threads": threads,
        "rounds": rounds,
        "clock": clock,
        "environment": _environment(threads),
        "files": rows,
        "notes": notes,
    }
    if mode == "throughput":
        result["callers"] = callers
    if csv_file is not None:
        write_csv(csv_file, result)
    answer(result, as_json, lambda: show(result))


def _latencies(
    runners: dict[str, Runner],
    field: list[Contestant],
    base: str,
    batch: int,
    threads: int,
    rounds: int,
    seconds: float,
    warm_up: int | None,
) -> tuple[list[dict[str, Any]], str]:
    from latency.benchmark import compare
    from latency.clock import WallClock

    on_cpu = all(r.device == "cpu" for r in runners.values())
    found = compare(
        {name: runner.run for name, runner in runners.items()},
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        clock=None if on_cpu else WallClock(),
        warm_up=warm_up,
    )
    rows = []
    for contestant in field:
        name, one = contestant.name, found[contestant.name]
        fps = batch * 1e6 / (one.median_us if warm_up is None else one.mean_us)  # a protocol's is of the mean
        rows.append(
            {
                **_head(name, runners[name], batch),
                **asdict(one),
                "fps": fps,
                "predicted_us": contestant.predicted_us(batch, threads),
                **_versus(found.ratio(base, name), name == base),
                "warnings": [f"{name}, batch {batch}: {text}" for text in one.warnings],
            }
        )
    return rows, next(iter(found.values())).clock


def _throughputs(
    runners: dict[str, Runner], base: str, batch: int, callers: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    from latency.throughput import measure_throughput

    found = measure_throughput(
        {name: runner.load for name, runner in runners.items()},
        batch=batch,
        callers=callers,
        rounds=rounds,
        seconds=seconds,
    )
    return [
        {
            **_head(name, runner, batch),
            **asdict(found[name]),
            "fps": found[name].median_fps,
            **_versus(found.ratio(base, name), name == base),
        }
        for name, runner in runners.items()
    ]


def _head(name: str, runner: Runner, batch: int) -> dict[str, Any]:
    return {
        "name": name,
        "runtime": runner.runtime,
        "precision": runner.precision,
        "device": runner.device,
        "batch": batch,
    }


def _versus(ratio: Any, itself: bool) -> dict[str, Any]:
    """Returns the ratio to the base, and whether the interval leaves 1 out."""
    apart = not itself and (ratio.lo > 1 or ratio.hi < 1)
    return {"speedup": ratio.median, "speedup_ci": [ratio.lo, ratio.hi], "difference_shown": apart}


def _batches(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if not 1 <= min(found) <= max(found) <= 2**16:
        raise UsageError(f"--batch {text} was asked; give images per inference: 1, or several: 1,8,32")
    return found


def _environment(threads: int) -> dict[str, Any]:
    import latency

    return latency.environment(threads=threads)
