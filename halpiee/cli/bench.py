"""``halpiee bench``: times networks side by side, in interleaved rounds; latency or throughput, never both."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee import ranges
from halpiee.cli.options import SIZES, Answered, Built, input_size, verb
from halpiee.cli.output import answer, say, wide_screen
from halpiee.cli.timed import Timed, open_all
from halpiee.errors import UsageError
from halpiee.inputs import INPUTS, parse_inputs
from halpiee.options import described, option
from halpiee.shared_options import NETWORK, RUNTIME, Threaded
from latency.files import check_place, write

if TYPE_CHECKING:
    from latency.backends import Runner

    Precision = Literal["fp32", "fp16", "bf16"]


PROTOCOLS: dict[str, dict[str, Any]] = {
    "halp": {"batch": "256", "rounds": 30, "precision": "fp32", "seconds": float("inf")}
}
"""Settings of published measurements. HALP: PyTorch eager, fp32, NCHW, batch 256, mean of 30 runs after 10."""

WARM_UP = {"halp": 10}
"""Runs of a protocol before those that count."""


@dataclass(frozen=True, kw_only=True)
class Bench(Built, Threaded, Answered):
    """The networks that are timed, and how."""

    files: tuple[str, ...] = field(
        metadata=described(
            "ONNX files, engines, plans, runs or MODELs, each with or without @HOW.",
            argument=True,
            metavar="FILE...",
        )
    )
    against: str | None = option(
        None,
        "Name of the network that ratios are taken against; `dense` is found beside a run.",
        unset="the first",
    )
    mode: Literal["latency", "throughput"] = option(
        "latency", "Measure latency, one call after the other, or throughput, as many images as possible."
    )
    rounds: ranges.Rounds = option(30, "Interleaved rounds.")
    callers: ranges.Threads = option(1, "Threads that call at the same time; for throughput.")
    seconds: ranges.Seconds = option(
        60.0, "Time limit per batch size: fewer rounds beyond it, but at least nine."
    )
    protocol: Literal["halp"] | None = option(None, "A published protocol: sets batch, rounds and precision.")
    csv: Path | None = option(None, "Also write the table as a new CSV file.")
    trust_engine: bool = option(False, "Load engines that halpiee did not build: they are executable.")
    trust_plan: bool = option(False, "Let plans name a package.module:function to call, of any arguments.")
    trust_run: bool = option(False, "Let settings.json of runs from elsewhere name such functions.")
    batch: str | None = option(
        None, "Images per inference: 1, or several: 1,8,32.", RUNTIME, unset="1, or all that a file takes"
    )
    precision: Literal["fp32", "fp16", "bf16"] | None = option(
        None, "Precision of modules; a file must have it.", RUNTIME, unset="fp32, files as they are"
    )
    device: Literal["cpu", "cuda"] = option("cpu", "Device of modules.", RUNTIME)
    size: str | None = option(
        None,
        f"Image size of a MODEL, of a plan instead of its own, or of a file that leaves it open: {SIZES}.",
        NETWORK,
    )
    inputs: tuple[str, ...] = option((), INPUTS, NETWORK, typed="--input")


@verb(
    "bench",
    Bench,
    examples=(
        "halpiee bench runs/demo/dense.onnx runs/demo/pruned.onnx --against dense",
        "halpiee bench runs/demo runs/demo@compile runs/demo/pruned.onnx --against dense --csv demo.csv",
        "halpiee bench small.onnx dense.onnx --batch 1,8 --threads 2",
        "halpiee bench small.onnx dense.onnx --mode throughput --callers 2",
        "halpiee bench runs/demo --against dense --protocol halp",
        "halpiee bench resnet50 half.json --device cuda --protocol halp",
    ),
)
def command(given: Bench) -> None:
    """Time networks side by side: latency with its spread, FPS, and the ratio with its interval.

    FILE is an ONNX file, a TensorRT engine, the folder of a run (its compact network), a plan (what it leaves, with
    initial weights), or a MODEL. `FILE@HOW` says how it runs:
    an ONNX file @cpu, @cuda, @tensorrt or @ort-rtx, the others @eager (the default), @compile or @onnx.
    """
    given = _checked(given)
    shape = parse_inputs(given.inputs) or (None if given.size is None else input_size(given.size))
    trust = {"engine": given.trust_engine, "plan": given.trust_plan, "run": given.trust_run}
    field, base = open_all(given.files, given.against, shape=shape, **given.arguments, trust=trust)
    notes = [note for c in field for note in c.notes]
    batches, said = _sizes(given, field)
    notes += said
    rows: list[dict[str, Any]] = []
    clock = "wall"
    for images in batches:
        found, clock = _timed(given, field, base, images)
        rows += found
    for warning in [*notes, *(w for row in rows for w in row.pop("warnings", ()))]:
        say(warning)
    environments = {row["name"]: row.pop("environment") for row in rows}
    result = {
        **{key: getattr(given, key) for key in ("mode", "protocol", "threads", "rounds")},
        "against": base,
        "batch": batches[0],
        "batches": batches,
        "clock": clock,
        "environment": environments.get(base, {}),
        "environments": environments,
        "files": rows,
        "notes": notes,
        **({"callers": given.callers} if given.mode == "throughput" else {}),
    }
    if given.csv is not None:
        _write_csv(given.csv, result)
    answer(result, given.as_json, lambda: show(result))


def _checked(given: Bench) -> Bench:
    """Returns the options with the settings of their protocol; refuses options that do not go together."""
    if given.protocol is not None:
        if given.mode != "latency":
            raise UsageError(
                f"--protocol {given.protocol} was asked with --mode {given.mode}; it is one of latency, leave --mode "
                "out"
            )
        given = replace(given, **PROTOCOLS[given.protocol])
    if given.batch is not None:
        _batches(given.batch)
    if given.callers > 1 and given.mode == "latency":
        raise UsageError(
            f"--callers {given.callers} was asked of a latency; add --mode throughput, or leave --callers out"
        )
    if given.csv is not None:
        check_place(given.csv)
    return given


def _sizes(given: Bench, field: list[Timed]) -> tuple[list[int], list[str]]:
    """Returns the batch sizes, and notes on them."""
    if given.batch is not None:
        return _batches(given.batch), []
    own = {c.fixed_batch for c in field if c.fixed_batch is not None}
    batches = sorted(own)[:1] or [1]
    return batches, [f"--batch {batches[0]}: a file that is named takes no other"] if own else []


def _timed(given: Bench, field: list[Timed], base: str, images: int) -> tuple[list[dict[str, Any]], str]:
    """Times every network at one batch size; returns a row for each, and the clock."""
    how: dict[str, Any] = {"threads": given.threads, "precision": given.precision, "device": given.device}
    with ExitStack() as opened:
        runners = {c.name: opened.enter_context(c.runner(batch=images, **how)) for c in field}
        if given.mode == "throughput":
            return _throughputs(runners, opened, base, images, given), "wall"
        return _latencies(runners, field, base, images, given, WARM_UP.get(given.protocol or ""))


def _latencies(
    runners: dict[str, Runner], field: list[Timed], base: str, batch: int, given: Bench, warm_up: int | None
) -> tuple[list[dict[str, Any]], str]:
    from latency.timing import WallClock
    from latency.timing.benchmark import compare

    on_cpu = all(r.device == "cpu" and r.in_caller for r in runners.values())
    found = compare(
        {name: runner.run for name, runner in runners.items()},
        rounds=given.rounds,
        seconds=given.seconds,
        threads=given.threads,
        clock=None if on_cpu else WallClock(),
        warm_up=warm_up,
    )
    rows = []
    for entry in field:
        name, one = entry.name, found[entry.name]
        fps = batch * 1e6 / (one.median_us if warm_up is None else one.mean_us)  # a protocol's is of the mean
        rows.append(
            {
                **_head(name, runners[name], batch),
                **asdict(one),
                "fps": fps,
                "metadata": entry.metadata or {},
                "predicted_us": entry.predicted_us(batch, given.threads),
                "predicted_interval_us": entry.predicted_interval_us(batch, given.threads),
                **_versus(found.ratio(base, name), name == base),
                "warnings": [f"{name}, batch {batch}: {text}" for text in one.warnings],
            }
        )
    return rows, next(iter(found.values())).clock


def _throughputs(
    runners: dict[str, Runner], opened: ExitStack, base: str, batch: int, given: Bench
) -> list[dict[str, Any]]:
    from latency.timing.throughput import Load, measure_throughput

    each = {
        name: [runner, *(opened.enter_context(runner.again()) for _ in range(given.callers - 1))]
        for name, runner in runners.items()
    }
    found = measure_throughput(
        {name: [Load(r.start, r.finish, r.in_thread) for r in rs] for name, rs in each.items()},
        batch=batch,
        callers=given.callers,
        rounds=given.rounds,
        seconds=given.seconds,
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
        "environment": dict(runner.circumstances),
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


def _write_csv(path: Path, result: dict[str, Any]) -> None:
    """Writes a line per network and batch size; values shared by all are repeated on each line."""
    import csv
    import io

    shared = {key: result[key] for key in ("mode", "against", "threads", "clock")}
    text = io.StringIO()
    lines = []
    for row in result["files"]:
        line = {
            key: value
            for key, value in row.items()
            if key not in ("speedup_ci", "device", "predicted_interval_us", "metadata")
        }
        line |= {
            "runs_on": row["device"],
            "speedup_lo": row["speedup_ci"][0],
            "speedup_hi": row["speedup_ci"][1],
        }
        environment = result["environments"][row["name"]]
        lines.append(
            line | shared | {key: environment.get(key) for key in ("device", "backend", "backend_version")}
        )
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write(path, text.getvalue())


def show(result: dict[str, Any]) -> None:
    """Prints the table, and names the networks whose difference the spread does not support."""
    from rich.table import Table
    from rich.text import Text

    from halpiee.report.values import unit_of

    base, several = result["against"], len(result["batches"]) > 1
    clock = {"cpu": "CPU time of the calling thread", "wall": "wall time"}[result["clock"]]
    if result["mode"] == "latency":
        title = f"latency, {clock}, {result['threads']} thread{'s' * (result['threads'] > 1)}"
        columns = ["median", "predicted", "IQR", "p50", "p90", "p99", "n", "FPS"]
    else:
        title = f"throughput, {clock}, {result['callers']} at once, {result['threads']} thread(s) each"
        columns = ["FPS", "IQR", "n"]
    if all(row.get("predicted_us") is None for row in result["files"]):
        columns = [c for c in columns if c != "predicted"]
    if not several:
        title += f", batch {result['batch']}"
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("")
    table.add_column("runs on")
    if several:
        table.add_column("batch", justify="right")
    unit = unit_of(*(row.get("median_us") for row in result["files"]))
    timed = result["mode"] == "latency"
    heads = [name if not timed or name in ("n", "FPS") else f"{name}, {unit}" for name in columns]
    for name in (*heads, f"speed-up over {base}", "95 % interval"):
        table.add_column(name, justify="right")
    unsure = []
    for row in result["files"]:
        lo, hi = row["speedup_ci"]
        if row["name"] != base and not row["difference_shown"]:
            unsure.append(row["name"] + (f" at batch {row['batch']}" if several else ""))
        cells = [
            row["name"],
            f"{row['runtime']} {row['precision']}",
            *([str(row["batch"])] if several else []),
        ]
        cells += [_cell(row, column, unit) for column in columns]
        cells += [f"{row['speedup']:.3f}", f"{lo:.3f} … {hi:.3f}"]
        table.add_row(*(Text(cell) for cell in cells))
    console = wide_screen()
    console.print(table)
    for name in unsure:
        console.print(Text(f"{name} against {base}: the spread supports no difference"))


def _cell(row: dict[str, Any], column: str, unit: str) -> str:
    """Returns one number with the digits that its spread supports; the heading names its unit."""
    from halpiee.report.values import latency

    if column == "n":
        return str(row["n"])
    if column == "FPS":
        return f"{row['fps']:.3g}" if row["fps"] < 100 else f"{row['fps']:,.0f}"
    if "median_us" not in row:
        return f"{row['iqr_fps']:.3g}" if row["iqr_fps"] < 100 else f"{row['iqr_fps']:,.0f}"
    key = {"median": "median_us", "predicted": "predicted_us", "IQR": "iqr_us"}.get(column, f"{column}_us")
    text = latency(row[key], None if column in ("IQR", "predicted") else row["iqr_us"], unit)
    within = row.get("predicted_interval_us") if column == "predicted" else None
    if within is not None:
        low, high = (latency(end, None, unit).removesuffix(f" {unit}") for end in within)
        return f"{text.removesuffix(f' {unit}')} ({low} … {high})"
    return text.removesuffix(f" {unit}")
