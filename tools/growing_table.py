"""A Markdown table with one row per network, each worked out in a process of its own; a second call goes on with it."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from halpiee.errors import HalpieeError
from latency._files import write

__all__ = ["GrowingTable"]

MISSING = "| – | – | – |"
"""What only the row of a network without figures holds."""


@dataclass(frozen=True)
class GrowingTable:
    """What tells one table from another.

    Attributes:
        module: the script, as ``python -m`` takes it.
        about: its description.
        names: every network, in the order of the rows.
        cells: network → its row.
        text: rows in order → the whole file.
        columns: columns of a row.
        seconds: limit of one network.
        memory_bytes: limit of one network's data; none where there is no need.
    """

    module: str
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
        except (HalpieeError, RuntimeError, ValueError) as error:
            return self.refused(name, " ".join(str(error).split())[:300])

    def refused(self, name: str, reason: str) -> str:
        """Returns the row of a network that gave no figures."""
        return f"| {name} |{' – |' * (self.columns - 2)} {reason.replace('|', '/')} |"

    def apart(self, name: str) -> str:
        """Returns the row of one network, worked out in a process of its own within the limits."""

        def limit() -> None:
            if self.memory_bytes is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (self.memory_bytes, self.memory_bytes))

        command = [sys.executable, "-m", self.module, name]
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

    def main(self) -> int:
        """Writes the table, or prints the rows of the networks named; returns the exit code."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("names", nargs="*", help="networks of the table; all of them where none is named")
        parser.add_argument("--out", type=Path, help="file to write; the rows it has are kept")
        parser.add_argument("--again", action="store_true", help="work out rows anew that the file has")
        given = parser.parse_args()
        warnings.simplefilter("ignore")
        chosen = given.names or list(self.names)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            parser.error(f"{', '.join(unknown)}: no network of this table; there are {', '.join(self.names)}")
        rows = written(given.out) if given.out is not None else {}
        for name in chosen:
            if name in rows and not given.again:
                continue
            rows[name] = self.apart(name) if given.out is not None else self.line(name)
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
