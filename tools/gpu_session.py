"""What ``docs/gpu.md`` lists, in its order, with a time limit for every step: a GPU that is lent for 30 minutes.

    python -m tools.gpu_session --out DIR --minutes 29

A step that ended well is not done again when the same command is given once more; one that ran out of time goes on
where its own files allow it. Every step's words lie in ``DIR/NAME.log``, and ``DIR/session.json`` says how each ended.
Nothing is downloaded. ``--device cpu --trial`` goes through the list with little networks, so that no step fails of a
slip; ``--list`` prints the commands.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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
    """

    name: str
    command: tuple[str, ...]
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Runs the list; returns 0 where every step ended well, 4 where one did not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of profiles, figures and logs")
    parser.add_argument("--minutes", type=float, default=29.0, help="for everything (default 29)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--trial", action="store_true", help="little networks and few rounds")
    parser.add_argument("--only", action="append", help="only steps whose name begins so; several times")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    chosen = [s for s in steps(given.out, given.device, given.trial) if wanted(s.name, given.only)]
    if given.list:
        for step in chosen:
            print(f"{step.name:24} {step.seconds:5.0f} s  {' '.join(step.command)}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    return run(chosen, given.out, 60.0 * given.minutes)


def wanted(name: str, only: list[str] | None) -> bool:
    """Whether a step was chosen."""
    return not only or any(name.startswith(text) for text in only)


def steps(out: Path, device: str, trial: bool) -> list[Step]:
    """Returns the list, the most telling first within every kind."""
    python, model, size = sys.executable, "resnet20" if trial else "resnet50", 8 if trial else 224
    large, networks, rounds = (2, 2, 9) if trial else (256, 20, 30)
    half = "fp16" if device == "cuda" else "bf16"
    found: list[Step] = []

    def add(name: str, seconds: float, *command: object) -> None:
        found.append(Step(name, (python, *map(str, command)), seconds))

    def profiled(precision: str, batch: int) -> Path:
        return out / f"{model}-{precision}-b{batch}.jsonl"

    if device == "cuda":
        add("tests", 180, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    quick = ("--builds", 2, "--size", 4, "--step", 8, "--widest", 16) if trial else ()
    for precision, batch in ((half, 1), (half, large), ("fp32", 1), ("fp32", large)):
        layout = ("--channels-last",) if precision == half else ()
        kind = ("--device", device, "--precision", precision, *layout, "--batch", batch)
        name = f"{precision}-b{batch}"
        add(
            f"profile-{name}", 150, "tools/profile_gpu.py", "--model", model, "--size", size, *kind, "--out",
            profiled(precision, batch),
        )  # fmt: skip
        if precision == half:
            add(
                f"predicted-{name}", 240, "-m", "tools.bench_latency", "--backend", "torch", "--model", model,
                "--size", size, *kind, "--profile", profiled(precision, batch), "--networks", networks, "--rounds",
                rounds,
            )  # fmt: skip
        if batch == large or trial:
            add(
                f"checks-{name}",
                120,
                "-m",
                "tools.gpu_checks",
                *kind,
                *quick,
                "--json",
                out / f"checks-{name}.json",
            )
    plans = []
    for budget in ("0.55", "0.30"):
        plan = out / f"{model}-{budget}.json"
        plans.append(plan)
        add(
            f"plan-{budget}", 60, "-m", "halpiee", "plan", model, "--size", size, "--batch", large, "--profile",
            profiled("fp32", large), "--budget", budget, "--out", plan,
        )  # fmt: skip
    protocol = ("--batch", 2, "--rounds", 9) if trial else ("--protocol", "halp")
    add("fps", 120, "-m", "halpiee", "bench", model, *plans, "--size", size, "--device", device, *protocol,
        "--csv", out / "fps.csv")  # fmt: skip
    return found


def run(chosen: list[Step], out: Path, seconds: float) -> int:
    """Runs steps one after the other until the time is over; writes after each how it ended."""
    record = out / "session.json"
    ended: dict[str, dict[str, object]] = json.loads(record.read_text()) if record.is_file() else {}
    end = time.monotonic() + seconds
    for step in chosen:
        command = " ".join(step.command)
        before = ended.get(step.name, {})
        if before.get("ended") == "well" and before.get("command") == command:
            print(f"{step.name}: done before", flush=True)
            continue
        left = end - time.monotonic()
        if left < LEAST:
            ended[step.name] = {"ended": "no time left", "command": command}
        else:
            print(f"{step.name}: up to {min(step.seconds, left):.0f} s", flush=True)
            began = time.monotonic()
            how = one(step, out / f"{step.name}.log", min(step.seconds, left))
            ended[step.name] = {
                "ended": how,
                "seconds": round(time.monotonic() - began, 1),
                "command": command,
            }
        print(f"{step.name}: {ended[step.name]['ended']}", flush=True)
        part = record.with_name(".session.json.part")
        part.write_text(json.dumps(ended, indent=1))
        part.replace(record)
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
