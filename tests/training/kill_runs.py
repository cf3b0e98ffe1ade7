"""Does a training end the same after it was killed? Kills real runs of two ranks and of one process, and compares ends.

    python -m tests.training.kill_runs runs/kills                      every kill, a line for each, and a verdict
    python -m tests.training.kill_runs runs/kills --ranks 2 --launcher torchrun --kills 4
                                                                       four of each training, begun by torchrun

``halpiee train`` trains a tiny network on CPUs, once undisturbed. The same command then runs in other folders, is
killed, and goes on with ``--resume`` until it is killed again: before, in and after the steps where a mask changes or
a network is cut, and while a file of the run is begun, half written, written and not yet renamed, and renamed. One
rank dies by SIGKILL at a point of its program; or all do, and their launcher, from outside, at a moment that is drawn.
A chain is a few kills of one run, spread over it. At its end the weights must be those of the undisturbed run, bit for
bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from tests import forked

POINT = "HALPIEE_KILL"
"""Where one rank kills itself: ``rank place name``; a place of ``STEPS`` with training and step, or ``WRITES`` with a
file."""

DIED = "HALPIEE_KILLED"
"""The file that it makes right before."""

STEPS = ("before", "in", "after")
WRITES = ("begun", "half", "written", "renamed")
PATIENCE = 240.0
"""Seconds that one start may take."""

LONG = 5
"""Kills of one chain, at most."""


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

    def kill(self) -> None:
        """Ends them all at once, from outside."""


Begin = Callable[[str, Sequence[str], Path, Mapping[str, str]], Ranks]
"""Starts the ranks of a module: its name, its command line, the file of what they say, environment variables."""


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
        self.poll = self._process.poll

    def kill(self) -> None:
        """Ends the ranks, to which their launcher gives sessions of their own, and the launcher."""
        for pid in (*ranks_of(self._process.pid), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Forked:
    """Ranks without a launcher, with the variables that it gives them, or one plain process; they find torch loaded."""

    def __init__(
        self, module: str, words: Sequence[str], log: Path, environment: Mapping[str, str], *, ranks: int = 2
    ) -> None:
        program = f"import sys, {module}{'.cli' if module == 'halpiee' else ''} as m\nsys.exit(m.main(sys.argv[1:]))"
        if ranks > 1:
            said = log.with_suffix(".said")
            said.mkdir(exist_ok=True)
            self._processes = forked.begin(program, *words, said=said, ranks=ranks, environment=environment)
            return
        # A run times how many threads are fastest and keeps that number. Two runs of one and of two threads differ in
        # rounding, so all have one processor here; ranks share the processors and have one thread each.
        program = f"import os; os.sched_setaffinity(0, {{max(os.sched_getaffinity(0))}})\n{program}"
        process = forked.server().Process(target=forked.carry_out, args=(program, words, environment, log))
        process.start()
        self._processes = [process]

    def poll(self) -> int | None:
        """Returns the largest exit code, 9 after a SIGKILL."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else max(abs(code or 0) for code in codes)

    def kill(self) -> None:
        """Ends all of them."""
        for process in self._processes:
            process.kill()


def one(begin: Begin, module: str, words: Sequence[str], out: Path, kill: Kill | None = None) -> str:
    """Runs a command to its end, or until it is killed, and returns how it ended.

    That is ``ended``, ``killed``, ``failed``, or ``hung`` where it did neither in its time.
    """
    inside = kill is not None and kill.place != "outside"
    died = out.with_suffix(".died")
    died.unlink(missing_ok=True)
    point = {POINT: f"{kill.rank} {kill.place} {kill.name}", DIED: str(died)} if inside and kill else {}
    ranks = begin(module, words, out.with_suffix(".log"), point)
    killed, until = False, time.monotonic() + PATIENCE
    lines, draw = out / "metrics.jsonl", random.Random(str(kill))
    try:
        while ranks.poll() is None and time.monotonic() < until and not killed:
            time.sleep(0.02)
            waits = kill is not None and not inside and lines.is_file()
            if kill is not None and waits and lines.read_text().count("\n") >= int(kill.name):
                time.sleep(draw.random() / 4)
                killed = ranks.poll() is None
    finally:
        hung = ranks.poll() is None and not killed
        while ranks.poll() is None:
            ranks.kill()
            time.sleep(0.02)
    if killed or died.exists():
        return "killed" if not hung else "hung"
    if hung:
        return "hung"
    # torchrun says 1 where a rank says 4: the toy misses no promise that is asked of it here
    return "ended" if ranks.poll() in (0, 1, 4) and standing(out) == "the end" else "failed"


def ranks_of(launcher: int) -> list[int]:
    """Returns the processes that a launcher has started, and those that they have."""
    with suppress(FileNotFoundError):
        found = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
        return [pid for child in found for pid in (child, *ranks_of(child))]
    return []


def kills(folder: Path, ranks: int = 2) -> list[Kill]:
    """Returns kills of a training, spread over its phases and files, in the order in which these come.

    Args:
        folder: of the undisturbed run.
        ranks: how many it has.
    """
    found = json.loads((folder / "pruned.json").read_text())
    steps = sorted({event["step"] for event in found["events"] if 0 < event["step"] < 39})
    dense = (folder / "dense.json").is_file()
    whole: list[Kill] = []
    if dense:
        whole += [Kill("in", "dense 15", 1), Kill("half", "dense.state")]
        whole += [Kill("written", "dense-best.safetensors"), Kill("outside", "3")]
        whole += [Kill("begun", "dense.safetensors"), Kill("renamed", "dense.json")]
    for k, step in enumerate(steps):
        places = [(STEPS[0], step - 1), (STEPS[1], step), (STEPS[2], step)]
        whole += [Kill(place, f"pruned {at}", (k + i) % 2) for i, (place, at) in enumerate(places)]
    whole += [Kill("outside", "7" if dense else "3"), Kill("written", "pruned.state")]
    whole += [Kill("half", "pruned.safetensors"), Kill("begun", "pruned.json")]
    whole += [Kill("renamed", "pruned.json"), Kill("half", "pruned.onnx"), Kill("written", "report.json")]
    return [replace(kill, rank=kill.rank % ranks) for kill in whole]


def chain(
    name: str, out: Path, chosen: Sequence[Kill], begin: Begin, tell: Callable[[str], None] = print
) -> list[str]:
    """Begins a training, kills it and goes on as often as is asked, and then to its end.

    Args:
        name: of ``CHAINS``.
        out: its folder.
        chosen: the kills, in the order of what they wait for.
        begin: starts the ranks.
        tell: is told every start.

    Returns:
        How each start ended; the last one does nothing but end, and none follows one that failed.
    """
    starts: list[str] = []
    for kill in (*chosen, None):
        again = (out / "settings.json").is_file()
        words = ["train", "--resume", f"--out={out}"] if again else typed(name, out)
        module = "halpiee" if kill is None or kill.place == "outside" else "tests.training.kill_runs"
        starts.append(one(begin, module, words, out, kill))
        who = "" if kill is None or kill.place == "outside" else f", rank {kill.rank}"
        where = f"goes on at {standing(out)}, {leftovers(out)} half-written" if kill else "the end"
        tell(f"  {out.name}: {kill or 'no kill'}{who}: {starts[-1]}; {where}")
        if starts[-1] in ("failed", "hung"):
            break
    return starts


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
    """Ends this process at once, and leaves a sign that it was here."""
    Path(os.environ[DIED]).touch()
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
    """Kills runs, says how each start ended, returns 1 where an end differs; as a rank it is ``halpiee`` itself."""
    if POINT in environment:
        from halpiee.cli import main as command_line

        rank, place, name = environment[POINT].split(" ", 2)
        if environment.get("RANK", "0") == rank:
            arm(place, name)
        command_line(list(arguments))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs; must not exist")
    parser.add_argument("--kills", type=int, default=100, help="of each training, at most (default: all)")
    parser.add_argument("--chains", nargs="*", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--ranks", nargs="*", type=int, choices=(1, 2), default=[2, 1])
    parser.add_argument("--launcher", choices=("fork", "torchrun"), default="fork", help="of two ranks")
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True)
    verdicts: list[tuple[int, int, bool]] = []
    for ranks in asked.ranks:
        begin: Begin = (
            Torchrun if ranks > 1 and asked.launcher == "torchrun" else partial(Forked, ranks=ranks)
        )
        for name in asked.chains:
            verdicts += _all_of(name, ranks, asked.folder.absolute(), asked.kills, begin)
    done, resumed, same = (sum(column) for column in zip(*verdicts, strict=True))
    print(f"{done} kills, {resumed} resumed; {same} of {len(verdicts)} ends are equal bit for bit")
    return 0 if done == resumed and same == len(verdicts) else 1


def _all_of(name: str, ranks: int, folder: Path, most: int, begin: Begin) -> list[tuple[int, int, bool]]:
    """Kills one training in chains; returns for each its kills, those that went on, and whether the end is equal."""
    tell = partial(print, flush=True)
    whole = folder / f"{name}-{ranks}-whole"
    if one(begin, "halpiee", typed(name, whole), whole) != "ended":
        raise SystemExit(f"the undisturbed run failed; see {whole}.log or {whole}.said")
    planned = kills(whole, ranks)
    planned = [planned[i * len(planned) // most] for i in range(most)] if len(planned) > most else planned
    found, parts = [], -(-len(planned) // LONG)
    for part in range(parts):
        out = folder / f"{name}-{ranks}-{part + 1}"
        starts = chain(name, out, planned[part::parts], begin, tell)
        killed = starts.count("killed")
        went_on = sum(a == "killed" and b in ("killed", "ended") for a, b in itertools.pairwise(starts))
        same = starts[-1] == "ended" and equal(whole, out)
        told = "equal bit for bit" if same else f"NOT the same, see {out}.log or {out}.said"
        tell(f"{out.name}: {killed} kills, {went_on} resumed; the end is {told}")
        found.append((killed, went_on, same))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
