"""Runs the steps of ``docs/gpu.md`` on a GPU that is available for 30 minutes, with a time limit for each.

    python -m tools.gpu_session --out DIR --minutes 29 --data path/to/cifar10

A step that ended well is not done again when the same command is given once more; one that ran out of time goes on
where its own files allow it, in this session while there is time, else in the next. Every step's words lie in
``DIR/NAME.log``, and ``DIR/session.json`` says how each ended. Nothing is downloaded. ``--device cpu --trial`` goes
through the list with little networks, so that no step fails of a slip; ``--list`` prints the commands.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from latency._files import write

ROOT = Path(__file__).resolve().parents[1]
LEAST = 20.0
"""A step is not begun with fewer seconds left."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log.
        command: what runs.
        seconds: it is ended after so long.
        needs: names of steps without whose end this one is not begun.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps; returns 0 where every step succeeded, 4 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of profiles, figures and logs")
    parser.add_argument("--minutes", type=float, default=29.0, help="for everything (default 29)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--trial", action="store_true", help="little networks and few rounds")
    parser.add_argument(
        "--data", type=Path, help="CIFAR-10, for the steps that train; without it they are left out"
    )
    parser.add_argument("--only", action="append", help="only steps whose name begins so; several times")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    data = None if given.data is None else given.data.resolve()
    chosen = [s for s in steps(given.out, given.device, given.trial, data) if wanted(s.name, given.only)]
    if given.list:
        for step in chosen:
            print(f"{step.name:24} {step.seconds:5.0f} s  {' '.join(step.command)}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    return run(chosen, given.out, 60.0 * given.minutes)


def wanted(name: str, only: list[str] | None) -> bool:
    """Whether a step was chosen."""
    return not only or any(name.startswith(text) for text in only)


def steps(out: Path, device: str, trial: bool, data: Path | None = None) -> list[Step]:
    """Returns the list, the most telling first."""
    found: list[Step] = []
    many, half = (2, "bf16") if device == "cpu" else (256, "fp16")
    main = ("resnet20", 8) if trial else ("resnet50", 224)

    def add(name: str, seconds: float, *command: object, needs: tuple[str, ...] = ()) -> None:
        found.append(Step(name, (sys.executable, *map(str, command)), seconds, needs))

    def kind(precision: str, batch: int) -> tuple[object, ...]:
        layout = ("--channels-last",) if precision == half else ()
        return ("--device", device, "--precision", precision, *layout, "--batch", batch)

    def file(model: str, precision: str, batch: int, again: str = "") -> Path:
        return out / f"{model}-{precision}-b{batch}{again}.jsonl"

    def profile(model: str, size: int, precision: str, batch: int, again: str = "") -> str:
        path = file(model, precision, batch, again)
        sized = ("--model", model, "--size", size)
        command = ("tools/profile_gpu.py", *sized, *kind(precision, batch), "--out", path)
        add(f"profile-{path.stem}", 150, *command)
        return found[-1].name

    def predict(precision: str, batch: int, after: str) -> None:
        path, few = file(main[0], precision, batch), ("--networks", 2, "--rounds", 9) if trial else ()
        add(
            f"predicted-{path.stem}", 240, "-m", "tools.bench_latency", "--backend", "torch", "--model", main[0],
            "--size", main[1], *kind(precision, batch), "--profile", path, *few, needs=(after,),
        )  # fmt: skip

    def check(precision: str, batch: int) -> None:
        quick = ("--builds", 2, "--size", 4, "--step", 8, "--widest", 16) if trial else ()
        name = f"checks-{precision}-b{batch}"
        into = ("--json", out / f"{name}.json")
        add(name, 120, "-m", "tools.gpu_checks", *kind(precision, batch), *quick, *into)

    tests = ("-m", "pytest", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-m")
    if device == "cuda":
        add("tests-gpu", 120, *tests, "gpu", "-rs")
    for batch in (1, many):
        predict(half, batch, profile(*main, half, batch))
    check(half, many)
    speeds(add, out, main, device, trial, profile(*main, "fp32", many), file(main[0], "fp32", many))
    if device == "cuda" and find_spec("tensorrt") is not None:
        add("tests-tensorrt", 180, *tests, "tensorrt", "-rs")
    again = profile(*main, half, 1, again="-again")
    add(
        "repeated", 60, "-m", "tools.bench_latency", "--pair", file(main[0], half, 1),
        file(main[0], half, 1, "-again"), needs=(f"profile-{main[0]}-{half}-b1", again),
    )  # fmt: skip
    first = file(main[0], half, 1)
    add(
        "staircase", 60, "-m", "halpiee", "inspect", first, "--plot", first.with_suffix(".svg"),
        needs=(f"profile-{main[0]}-{half}-b1",),
    )  # fmt: skip
    little = ("--size", 32, "--batch-size", 8, "--pairs", 9, "--changes", 4) if trial else ("--pairs", 100)
    add("training", 180, "-m", "tools.bench_training", "--device", device, *little)
    if data is not None:
        training(add, out, device, trial, data, first=True)
        to_a_latency(add, out, device, trial, data)
    for batch in (1, many):
        check("fp32", batch)
    if not trial:
        for model, size in (main, ("mobilenet_v1", 224), ("resnet20", 32)):
            for precision, batch in itertools.product((half, "fp32"), (1, 32, many)):
                done = ((main[0], half, 1), (main[0], half, many), (main[0], "fp32", many))
                if (model, precision, batch) not in done:
                    profile(model, size, precision, batch)
        long_ones(add, out, device, data)
    return found


def long_ones(add: Callable[..., None], out: Path, device: str, data: Path | None) -> None:
    """Adds what takes longest: whole trainings, and the table of HALP's paper."""
    if data is not None:
        training(add, out, device, False, data, first=False)
    if device == "cuda":
        whole = ("--protocol", "halp", "--group-size", 128, "--out", out / "resnet50-halp.jsonl")
        add("profile-halp", 600, "tools/profile_gpu.py", "--model", "resnet50", *whole)


def speeds(
    add: Callable[..., None],
    out: Path,
    main: tuple[str, int],
    device: str,
    trial: bool,
    after: str,
    profile: Path,
) -> None:
    """Adds the plans for two latencies, and the images per second of what they leave beside the dense network."""
    model, size = main
    plans, names = [], []
    batch = profile.stem.rpartition("-b")[2]
    for budget in ("0.95", "0.90") if trial else ("0.55", "0.30"):
        plans.append(out / f"{model}-{budget}.json")
        names.append(f"plan-{budget}")
        add(
            names[-1], 60, "-m", "halpiee", "plan", model, "--size", size, "--batch", batch, "--profile", profile,
            "--budget", budget, "--out", plans[-1], needs=(after,),
        )  # fmt: skip
    protocol = ("--batch", batch, "--rounds", 9) if trial else ("--protocol", "halp")
    add(
        "fps", 120, "-m", "halpiee", "bench", model, *plans, "--size", size, "--device", device, *protocol, "--csv",
        out / "fps.csv", needs=tuple(names),
    )  # fmt: skip


def training(
    add: Callable[..., None], out: Path, device: str, trial: bool, data: Path, *, first: bool
) -> None:
    """Adds the methods on CIFAR-10: a first look with few steps, or whole trainings; one file for both."""
    from tools.small_cifar import LARGE

    methods = ("static", "rigl", "iee", "set", "granet", "gmp")
    command = (
        "-m",
        "tools.bench_methods",
        "--device",
        device,
        "--data",
        data,
        "--out",
        out / "methods.jsonl",
    )
    if trial:
        short = ("--settings", "mlp", "--steps", 400, "--seeds", 1)
        add("cifar-first", 120, *command, *short, "--methods", *methods)
        return
    settings, few = ("--settings", *LARGE), ("--settings", next(iter(LARGE)))
    if first:
        add("cifar-first", 180, *command, *few, "--steps", 600, "--seeds", 1, "--methods", *methods)
    else:
        add("cifar", 900, *command, *settings, "--methods", *methods)


def to_a_latency(add: Callable[..., None], out: Path, device: str, trial: bool, data: Path) -> None:
    """Adds trainings to half the latency of this device: IEE, HALP from its dense network, and uniform widths."""
    batch, where = (8, "digits") if trial else (256, data)
    network, long = ("resnet20", 4) if trial else ("resnet56", 30)
    size = ("--size", 16) if trial else ()
    profile = out / f"{network}-to-train-b{batch}.jsonl"
    add(
        "profile-to-train", 150, "tools/profile_gpu.py", "--model", network, "--size", 16 if trial else 32,
        "--device", device, "--batch", batch, "--out", profile,
    )  # fmt: skip
    for method, needs in (
        ("iee", "profile-to-train"),
        ("halp", "latency-iee"),
        ("small-dense", "latency-iee"),
    ):
        folder = out / f"latency-{method}"
        begin = (
            network, "--data", where, *size, "--device", device, "--batch", batch, "--profile", profile, "--budget",
            0.7, "--epochs", long, "--batch-size", 128, "--method", method,
        )  # fmt: skip
        if method == "halp":
            begin += ("--weights", out / "latency-iee" / "dense.safetensors")
        if method != "iee":
            begin += ("--no-baseline",)
        again = (folder / "settings.json").is_file()
        add(
            f"latency-{method}", 400, "-m", "halpiee", "train", *(("--resume",) if again else begin), "--out", folder,
            needs=(needs,),
        )  # fmt: skip


def run(chosen: list[Step], out: Path, seconds: float) -> int:
    """Runs steps one after the other until the time is over; writes after each how it ended.

    Those that ran out of time, and those that waited for them, come again, with twice the time, while there is any.
    """
    record = out / "session.json"
    ended: dict[str, dict[str, object]] = json.loads(record.read_text()) if record.is_file() else {}
    end = time.monotonic() + seconds
    names = {step.name for step in chosen}
    waiting, patience = list(chosen), 1.0
    while waiting:
        for step in waiting:
            command = " ".join(step.command)
            before = ended.get(step.name, {})
            left = end - time.monotonic()
            missing = [n for n in step.needs if n in names and ended.get(n, {}).get("ended") != "well"]
            if before.get("ended") == "well" and before.get("command") == command:
                print(f"{step.name}: done before", flush=True)
                continue
            if missing:
                ended[step.name] = {"ended": f"waits for {missing[0]}", "command": command}
            elif left < LEAST:
                ended[step.name] = {"ended": "no time left", "command": command}
            else:
                limit = min(patience * step.seconds, left)
                print(f"{step.name}: up to {limit:.0f} s", flush=True)
                began = time.monotonic()
                how = one(step, out / f"{step.name}.log", limit)
                spent = round(time.monotonic() - began, 1)
                ended[step.name] = {"ended": how, "seconds": spent, "command": command}
            print(f"{step.name}: {ended[step.name]['ended']}", flush=True)
            write(record, json.dumps(ended, indent=1), overwrite=True)
        late = {step.name for step in waiting if ended[step.name]["ended"] == "out of time"}
        if not late or end - time.monotonic() < LEAST:
            break
        waiting = [
            s for s in waiting if s.name in late or str(ended[s.name]["ended"]).startswith("waits for")
        ]
        patience *= 2
    return 0 if all(ended[step.name]["ended"] == "well" for step in chosen) else 4


def one(step: Step, log: Path, seconds: float) -> str:
    """Runs one step, all of whose processes end with it; returns how it ended."""
    with log.open("a") as words:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=words, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return "out of time"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return "well" if code == 0 else f"with exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
