"""Asks a GPU that is there for nine minutes the questions of ``docs/gpu.md``, the most telling first.

    python -m tools.gpu_session --out DIR --minutes 9 --data path/to/cifar10

One process carries out the parts that can share it, so that torch starts once; where it dies, or a part does not end
when it is told to, the next part has a new one. What a part finds it writes line by line (``DIR/NAME.jsonl``, its
words ``DIR/NAME.log``), ``DIR/session.json`` says how each ended, ``DIR/clocks.csv`` how fast the GPU ran. Everything
is packed into one archive again and again, so that being cut short loses seconds. The same command goes on: from
``DIR``, or from the archive alone. A part is begun where enough time is left for it, else the next one is. Nothing is
downloaded.

``--device cpu --trial`` goes through the list with little networks in less than a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latency.device import clocks
from latency.files import write
from tools.gpu_session_parts import MORE, PRELOADED, ROOT, Part, Place, parts

GRACE = 15.0
"""Seconds in which a part that is told to end may write what it has."""

LOADING = 60.0
"""Seconds in which a process may import what it preloads."""

READY = "ready\n"
"""What a process says before it takes parts."""

PACKED_EVERY = 20.0
"""Seconds between two archives while a part runs."""

MOST_BYTES = 15 << 20
"""Of one archive; a lent machine returns at most 16 MiB per file."""


def main(arguments: list[str] | None = None) -> int:
    """Carries out the parts; returns 0 where every one ended well, 4 where one did not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of figures, profiles and logs")
    parser.add_argument("--archive", type=Path, help="everything in one file (default: DIR.tar.gz)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default 9)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--trial", action="store_true", help="little networks and few rounds")
    parser.add_argument("--data", help="CIFAR-10, for the parts that train; without it they are left out")
    parser.add_argument("--only", action="append", help="only parts whose name begins so; several times")
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    given = parser.parse_args(arguments)
    place = Place(given.out.resolve(), given.device, given.trial, given.data)
    chosen = [p for p in parts(place) if not given.only or any(p.name.startswith(n) for n in given.only)]
    if given.list:
        for part in chosen:
            print(
                f"{part.name:24} {part.seconds:5.0f} s  {part.call.partition(':')[2]} {dict(part.arguments)}"
            )
        return 0
    archive = given.archive or place.out.with_name(f"{place.out.name}.tar.gz")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the session's end
    try:
        with Session(place, archive.resolve()) as session:
            return session.run(chosen, 60.0 * given.minutes)
    finally:
        signal.signal(signal.SIGTERM, before)


class Session:
    """The parts, one after another, as a context manager: the process that carries them out ends with it.

    An empty place is filled from the archive where there is one.
    """

    def __init__(self, place: Place, archive: Path, preloaded: Sequence[str] = PRELOADED) -> None:
        place.out.mkdir(parents=True, exist_ok=True)
        if archive.is_file() and not any(place.out.iterdir()):
            unpack(archive, place.out)
        self.place, self.archive, self._preloaded = place, archive, preloaded
        self._worker: _Worker | None = None
        self._record = place.out / "session.json"
        self.ended: dict[str, dict[str, Any]] = (
            json.loads(self._record.read_text()) if self._record.is_file() else {}
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.kill()
        self.keep()

    def run(self, chosen: Sequence[Part], seconds: float) -> int:
        """Carries out what has not ended well, as the time that is left allows.

        Parts that ran out of time, and those that waited for them, come again with twice the time while there is any.

        Returns:
            0 where every part ended well, else 4.
        """
        end, patience = time.monotonic() + seconds, 1.0
        names, tried = {part.name for part in chosen}, set[str]()
        with watched(self.place.out / "clocks.csv"):
            while True:
                begun = False
                for part in chosen:
                    how = self.ended.get(part.name, {}).get("ended")
                    if how == "well" or (part.name in tried and how not in ("out of time", MORE)):
                        continue
                    missing = [n for n in part.needs if n in names and not self._well(n)]
                    if missing:
                        self._write(part, f"waits for {missing[0]}")
                    elif end - time.monotonic() < part.least:
                        if how not in ("out of time", MORE):
                            self._write(part, "no time left")
                    else:
                        begun = True
                        tried.add(part.name)
                        self._worker = self._worker or _Worker(self.place, self._preloaded)
                        self._piece(part, min(patience * part.seconds, end - time.monotonic()))
                if not begun:
                    break
                patience *= 2.0
        return 0 if all(self._well(part.name) for part in chosen) else 4

    def keep(self) -> None:
        """Writes how the parts ended, and packs everything."""
        write(self._record, json.dumps(self.ended, indent=1), overwrite=True)
        pack(self.place.out, self.archive)

    def _well(self, name: str) -> bool:
        return self.ended.get(name, {}).get("ended") == "well"

    def _piece(self, part: Part, seconds: float) -> None:
        """Carries out a part, or one piece of it; after one that broke off the next has a new process.

        An error of CUDA stays in its process, and so does an import that was interrupted.
        """
        print(f"{part.name}: up to {seconds:.0f} s", flush=True)
        begun = time.monotonic()
        assert self._worker is not None
        how, why, usable = self._worker.do(part, seconds, self.keep)
        if not usable:
            self._worker.kill()
            self._worker = None
        self._write(part, how, why, round(time.monotonic() - begun, 1))

    def _write(self, part: Part, how: str, why: str = "", seconds: float = 0.0) -> None:
        before = self.ended.get(part.name, {})
        spent = round(float(before.get("seconds", 0.0)) + seconds, 1)
        self.ended[part.name] = {"ended": how, "seconds": spent, **({"why": why} if why else {})}
        print(f"{part.name}: {how}{f' ({why})' if why else ''}", flush=True)
        self.keep()


class _Worker:
    """The process that carries out parts: it takes a line for each, and answers with a line."""

    def __init__(self, place: Place, preloaded: Sequence[str]) -> None:
        self._place = place
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tools.gpu_session import work; work()", *preloaded],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._answer(LOADING, lambda: None)  # it says when it is ready; no part's time passes before

    def do(self, part: Part, seconds: float, meanwhile: Callable[[], None]) -> tuple[str, str, bool]:
        """Carries out a part; returns how it ended, why, and whether the process can carry out another.

        It is told to end after ``seconds`` and ended ``GRACE`` later; ``meanwhile`` is called again and again.
        """
        order = {
            "name": part.name, "call": part.call, "arguments": dict(part.arguments), "out": str(self._place.out),
            "device": self._place.device, "trial": self._place.trial, "data": self._place.data,
        }  # fmt: skip
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the answer is how
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        answer = self._answer(seconds, meanwhile)
        if answer == READY:  # it has taken longer than a minute to start
            answer = self._answer(seconds, meanwhile)
        if answer is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)
            answer = self._answer(GRACE, meanwhile)
            if answer is None:
                self.kill()
                return "out of time", "it did not end when it was told to", False
        if answer == "":
            return "failed", f"its process ended with code {self._process.wait()}", False
        found: dict[str, Any] = json.loads(answer)
        return found["ended"], found["why"], found["usable"]

    def kill(self) -> None:
        """Ends the process and what it began."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(timeout=5.0)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _answer(self, seconds: float, meanwhile: Callable[[], None]) -> str | None:
        """Returns the next line, the empty one where the process has ended, None where neither came in time."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            try:
                return self._answers.get(timeout=max(0.0, min(left, PACKED_EVERY)))
            except queue.Empty:
                if left <= PACKED_EVERY:
                    return None
                meanwhile()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")


def work() -> None:
    """Carries out the parts that come as lines of standard input, one after another; the process of a session."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    running = False

    def interrupted(number: int, frame: object) -> None:
        if running:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):  # the parts that need it say so
            importlib.import_module(name)
    answers.write(READY)
    for line in sys.stdin:
        order = json.loads(line)
        place = Place(Path(order["out"]), order["device"], order["trial"], order["data"])
        with (
            (place.out / f"{order['name']}.log").open("a", buffering=1) as words,
            (place.out / f"{order['name']}.jsonl").open("a", buffering=1) as found,
        ):
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
            how, why, usable = "well", "", False
            try:
                running = True
                how, why = _called(order, place, found.write)
                usable = True
            except KeyboardInterrupt:
                how = "out of time"
            except BaseException as error:  # whatever it is, the next part is asked
                traceback.print_exc()
                how, why = "failed", f"{type(error).__name__}: {str(error).strip()[:300]}"
            finally:
                running = False
            sys.stdout.flush()
            sys.stderr.flush()
        answers.write(json.dumps({"ended": how, "why": why, "usable": usable}) + "\n")


def _called(order: Mapping[str, Any], place: Place, line: Callable[[str], object]) -> tuple[str, str]:
    """Calls the function of a part; returns how it ended, and why."""
    begun = time.monotonic()

    def say(**finding: Any) -> None:
        line(json.dumps({"after_s": round(time.monotonic() - begun, 2), **finding}, default=str) + "\n")

    module, _, name = order["call"].partition(":")
    answer = getattr(importlib.import_module(module), name)(place, say, **order["arguments"])
    return (MORE, "") if answer == MORE else ("failed", str(answer)) if answer else ("well", "")


@contextlib.contextmanager
def watched(path: Path, hertz: float = 5.0) -> Iterator[None]:
    """Writes the GPU's clock and what throttles it into a file while it is open; nothing without NVML."""
    if not clocks():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        with path.open("a", buffering=1) as lines:
            while not over.wait(1.0 / hertz):
                now = clocks()
                lines.write(
                    f"{time.time():.2f},{now.get('sm_mhz', '')},{'+'.join(now.get('throttled', []))}\n"
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pack(folder: Path, archive: Path, most_bytes: int = MOST_BYTES) -> list[str]:
    """Packs a folder into one file, small files first, whole or not at all.

    Returns:
        The names of files that were left out, the largest ones: more than the archive takes. They stand in it under
        ``left-out.txt``.
    """
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p))
    new, left = archive.with_name(f"{archive.name}.new"), list[str]()
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(new, "w:gz", compresslevel=6) as packed:
        for path in files:
            name = str(path.relative_to(folder))
            with contextlib.suppress(FileNotFoundError):  # another process has just replaced it
                # Weights do not compress: a file is taken to need its size.
                if new.stat().st_size + path.stat().st_size > most_bytes:
                    left.append(name)
                else:
                    packed.add(path, arcname=name, recursive=False)
        if left:
            listed = folder / "left-out.txt"
            listed.write_text("".join(f"{name}\n" for name in left))
            packed.add(listed, arcname=listed.name)
    new.replace(archive)
    return left


def unpack(archive: Path, folder: Path) -> Iterable[str]:
    """Unpacks what ``pack`` made; returns the names."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        return packed.getnames()


if __name__ == "__main__":
    sys.exit(main())
