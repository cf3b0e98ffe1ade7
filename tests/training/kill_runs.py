"""Does a training of two processes end the same after it was killed? Kills real runs and compares what they leave.

    python -m tests.training.kill_runs runs/kills              30 kills in two chains, and a table of them
    python -m tests.training.kill_runs runs/kills --kills 4    fewer of each chain

``torchrun --nproc-per-node 2 -m halpiee train`` trains a tiny network on CPUs, once undisturbed. The same command
then runs in another folder, is killed, and goes on with ``--resume`` until it is killed again: before, in and after the
steps where a mask changes or a network is cut, and while a file of the run is begun, half written, written and not yet
renamed, and renamed. One rank dies by SIGKILL at a point of its program; or launcher and ranks all do, from outside, at
a moment that is drawn. At the end the weights of both folders must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tools.results import markdown

__all__ = ["Begin", "Kill", "Ranks", "Torchrun", "chain", "command", "equal", "main"]

POINT = "HALPIEE_KILL"
"""Where one rank kills itself: ``rank place name``; a place of ``STEPS`` with training and step, or ``WRITES`` with a
file."""

STEPS = ("before", "in", "after")
WRITES = ("begun", "half", "written", "renamed")
PATIENCE = 900.0
"""Seconds that one start may take."""


CHAINS = {
    "iee": ["--method=iee", "--sparsity=0.6", "--cycles=2", "--ship=best"],
    "filter": ["--method=filter", "--sparsity=0.5", "--criterion=taylor", "--rounds=2", "--no-baseline"],
}
"""Masks of weights that are exchanged, after a dense training; filters that are cut out half way."""


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        place: of ``STEPS`` or ``WRITES``; or ``outside``.
        name: the training and its step (``pruned 12``), a file, or the lines of ``metrics.jsonl`` that are waited for.
        rank: that dies; from outside all do.
    """

    place: str
    name: str
    rank: int = 0

    def __str__(self) -> str:
        if self.place in STEPS:
            return f"{self.place} step {self.name}"
        if self.place in WRITES:
            return f"{self.name} {self.place}"
        return f"from outside, after {self.name} epochs"


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command line of two ranks."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    return [*launcher, "--nproc-per-node=2", "--master-port=0", "--standalone", "-m", module, *arguments]


def typed(name: str, out: Path) -> list[str]:
    """Returns the options of a chain's training."""
    own = [
        "--data=tests.training.toy:data",
        "--epochs=4",
        "--batch-size=12",
        "--seed=3",
        "--device=cpu",
    ]
    return ["train", "tests.training.toy:net", *own, *CHAINS[name], f"--out={out}"]


class Ranks(Protocol):
    """Ranks of one run, while they work."""

    def poll(self) -> int | None:
        """Returns the exit code, None while one of them works."""

    def wait(self, seconds: float) -> int:
        """Waits for their end; returns the exit code."""

    def kill(self) -> None:
        """Ends them all at once, from outside."""


Begin = Callable[[str, Sequence[str], Path, Mapping[str, str]], Ranks]
"""Starts two ranks of a module: its name, its command line, the file of what they say, environment variables."""


class Torchrun:
    """Two ranks and their launcher, in a process group of their own."""

    def __init__(self, module: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        root = str(Path(__file__).parents[2])
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "OMP_WAIT_POLICY": "PASSIVE"}
        with log.open("ab") as told:
            self._process = subprocess.Popen(
                command(module, *words),
                stdout=told, stderr=told, env={**shared, **environment}, start_new_session=True,
            )  # fmt: skip
        self.poll, self.wait = self._process.poll, self._process.wait

    def kill(self) -> None:
        """Ends the ranks, to which their launcher gives sessions of their own, and the launcher."""
        for pid in (*ranks_of(self._process.pid), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def one(begin: Begin, module: str, words: Sequence[str], out: Path, kill: Kill | None = None) -> int:
    """Runs a command to its end, or until it is killed; returns the exit code."""
    inside = kill is not None and kill.place != "outside"
    point = {POINT: f"{kill.rank} {kill.place} {kill.name}"} if inside and kill is not None else {}
    ranks = begin(module, words, out.with_suffix(".log"), point)
    try:
        if kill is not None and not inside:
            lines, draw = out / "metrics.jsonl", random.Random(kill.name)
            until = time.monotonic() + PATIENCE
            while ranks.poll() is None and time.monotonic() < until:
                if lines.is_file() and lines.read_text().count("\n") >= int(kill.name):
                    time.sleep(draw.random() / 4)
                    break
                time.sleep(0.02)
        else:
            ranks.wait(PATIENCE)
    finally:
        if ranks.poll() is None:
            ranks.kill()
    return ranks.wait(PATIENCE)


def ranks_of(launcher: int) -> list[int]:
    """Returns the processes that a launcher has started, and those that they have."""
    found = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    return [pid for child in found for pid in (child, *ranks_of(child))]


def kills(folder: Path, n: int) -> list[Kill]:
    """Returns ``n`` kills for a chain, spread over its phases and files in the order in which they come.

    Args:
        folder: of the undisturbed run.
        n: how many.
    """
    found = json.loads((folder / "pruned.json").read_text())
    steps = sorted({event["step"] for event in found["events"] if 0 < event["step"] < 39})
    whole: list[Kill] = []
    if (folder / "dense.json").is_file():
        whole += [
            Kill("in", "dense 15", 1),
            Kill("half", "dense.state"),
            Kill("written", "dense-best.safetensors"),
        ]
        whole += [Kill("outside", "3"), Kill("begun", "dense.safetensors"), Kill("renamed", "dense.json")]
    for k, step in enumerate(steps):
        places = [(STEPS[0], step - 1), (STEPS[1], step), (STEPS[2], step)]
        whole += [Kill(place, f"pruned {at}", (k + i) % 2) for i, (place, at) in enumerate(places)]
    whole += [Kill("outside", "7" if (folder / "dense.json").is_file() else "3")]
    whole += [
        Kill("written", "pruned.state"),
        Kill("half", "pruned.safetensors"),
        Kill("begun", "pruned.json"),
    ]
    whole += [Kill("renamed", "pruned.json"), Kill("half", "pruned.onnx"), Kill("written", "report.json")]
    if len(whole) <= n:
        return whole
    return [whole[i * len(whole) // n] for i in range(n)]


def chain(
    name: str, folder: Path, n: int = 100, chosen: Sequence[Kill] = (), begin: Begin = Torchrun
) -> tuple[list[dict[str, Any]], bool]:
    """Runs one training undisturbed and once with kills.

    Args:
        name: of ``CHAINS``.
        folder: of both runs.
        n: kills, at most.
        chosen: these kills instead.
        begin: starts the ranks.

    Returns:
        A row for each kill, and whether both ends are equal.
    """
    whole, out = folder / f"{name}-whole", folder / f"{name}-killed"
    if one(begin, "halpiee", typed(name, whole), whole) not in (0, 4, 1):
        raise SystemExit(f"the undisturbed run failed; see {whole.with_suffix('.log')}")
    rows = []
    for kill in chosen or kills(whole, n):
        again = (out / "settings.json").is_file()
        words = ["train", "--resume", f"--out={out}"] if again else typed(name, out)
        module = "halpiee" if kill.place == "outside" else "tests.training.kill_runs"
        code = one(begin, module, words, out, kill)
        row = {"training": name, "killed": str(kill), "rank": "all" if kill.place == "outside" else kill.rank}
        rows.append({**row, "exit": code, "goes on at": standing(out), "half-written": leftovers(out)})
        print(" | ".join(map(str, rows[-1].values())), flush=True)
    one(begin, "halpiee", ["train", "--resume", f"--out={out}"], out)
    return rows, equal(whole, out)


def standing(out: Path) -> str:
    """Returns where a killed run goes on."""
    if (out / "report.json").is_file():
        return "the end"
    for label in ("pruned", "dense"):
        if (out / f"{label}.json").is_file():
            return f"after {label}"
        state = out / f"{label}.state"
        if state.is_file():
            return f"{label} {torch.load(state, weights_only=True)['step']}"
    return "the start"


def leftovers(out: Path) -> int:
    """Returns how many files were being written."""
    return len(list(out.glob(".*.part")))


def equal(first: Path, second: Path) -> bool:
    """Whether two finished runs are equal bit for bit: weights, masks, widths, and the losses of every epoch."""
    from safetensors.torch import load_file

    names = {path.name for folder in (first, second) for path in folder.glob("*.safetensors")}
    for name in names:
        if not all((folder / name).is_file() for folder in (first, second)):
            return False
        one, other = (load_file(folder / name) for folder in (first, second))
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            return False
    told = [json.loads((folder / "pruned.json").read_text()) for folder in (first, second)]
    histories = [[(e["step"], e["loss"], e["accuracy"]) for e in found["history"]] for found in told]
    return (
        bool(names)
        and histories[0] == histories[1]
        and told[0]["counts"] == told[1]["counts"]
        and not leftovers(second)
    )


# -- in a rank that is to die -------------------------------------------------------------------------------------


def die() -> None:
    """Ends this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


class HalfWriting:
    """The module ``os`` whose ``write`` writes half of a file and then ends the process, where it is told to."""

    def __init__(self) -> None:
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, content: Any) -> int:
        """Writes all that it is given, or half of it."""
        if self.armed:
            os.write(descriptor, content[: len(content) // 2])
            die()
        return os.write(descriptor, content)


def arm(place: str, name: str) -> None:
    """Lets this process end itself at a place of its program."""
    from halpiee.training.loop import Trainer
    from latency import files as _files

    if place in STEPS:
        label, _, step = name.partition(" ")

        def here(trainer: Trainer) -> bool:
            path = trainer.outlet.checkpoint
            return path is not None and path.stem == label and trainer.step == int(step)

        around(Trainer, "_sound" if place == "in" else "_one", here, after=place == "after")
        return
    patched: Any = _files
    system = HalfWriting()
    original = {key: getattr(_files, key) for key in ("_begin", "_name", "_sync_folder")}
    now: list[str] = []

    def began(path: Path, mode: int) -> Any:
        found = original["_begin"](path, mode)
        now[:] = [path.name]
        if path.name == name and place == "begun":
            die()
        system.armed = path.name == name and place == "half"
        return found

    def named(*given: Any) -> Any:
        if now == [name] and place == "written":
            die()
        return original["_name"](*given)

    def synced(*given: Any) -> Any:
        if now == [name] and place == "renamed":
            die()
        return original["_sync_folder"](*given)

    patched.os, patched._begin, patched._name, patched._sync_folder = system, began, named, synced


def around(kind: Any, method: str, here: Callable[[Any], bool], *, after: bool) -> None:
    """Ends the process before a method, or after it, of an object of which ``here`` holds before."""
    original = getattr(kind, method)

    def wrapped(self: Any, *given: Any) -> Any:
        due = here(self)
        if due and not after:
            die()
        found = original(self, *given)
        if due:
            die()
        return found

    setattr(kind, method, wrapped)


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Kills runs and prints the table, returns 1 where an end differs; as a rank it is ``halpiee`` itself."""
    if "LOCAL_RANK" in environment:
        from halpiee.cli import main as command_line

        rank, place, name = environment[POINT].split(" ", 2)
        if environment["RANK"] == rank:
            arm(place, name)
        command_line(list(arguments))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs; must not exist")
    parser.add_argument("--kills", type=int, default=100, help="of each chain, at most (default: all)")
    parser.add_argument("--chains", nargs="*", choices=list(CHAINS), default=list(CHAINS))
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True)
    rows, ends = [], {}
    for name in asked.chains:
        more, ends[name] = chain(name, asked.folder.absolute(), asked.kills)
        rows += more
    print(markdown(rows))
    for name, same in ends.items():
        print(f"{name}: the end is {'equal bit for bit' if same else 'NOT the same'}")
    return 0 if all(ends.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
