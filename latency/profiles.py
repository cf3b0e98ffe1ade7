"""A profile: the tables of one device, in a file a review can read.

JSON Lines. The first line holds the schema and the environment, every other line one measurement: the op's key
(``op kernel stride pad dilation groups c_in c_out d h w batch tail dtype layout cache``) and its value
(``us ci_lo ci_hi n method contention tactic time env role steps``). The last line for a key wins, a torn last line
is left out. Nothing in it is ever executed.

``Cell`` and ``Environment`` state what a line may hold. Fields that they do not name are kept as they are: backends
state more, and a reader of today must not refuse a later version's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta

from latency.device import TimingPolicy, differences, environment_id, kind_of_environment, policy_for
from latency.errors import ProfileError, UsageError
from latency.files import parsed, read_bytes, sound, write
from latency.op import IMAGE_CHANNELS, Op
from latency.table import Table, check_time

SCHEMA = "halpiee.profile/1"

KEYS = (
    "op", "kernel", "stride", "pad", "dilation", "groups", "c_in", "c_out", "d", "h", "w", "batch", "tail",
    "dtype", "layout", "cache",
)  # fmt: skip
"""What names a cell, in the order a line states it."""

WARM, COLD = "warm", "cold"
"""States of an op's weights when it runs, as cells state them."""

LEFT_OUT = "not_measured"
"""Ops that were asked for and that the backend cannot build: a field of the environment, and a line of its own."""


AGAIN = "measure again: halpiee profile MODEL --out FILE"
REMOVE = "remove that line, a resumed sweep measures the cell again"

MOST_BYTES = 256 * 2**20
"""Largest profile that is read; a cell takes about 440 bytes, and the largest of ``profiles/`` 0.3 MB."""

ENVIRONMENT = "environment"
"""Key of the environment in the first line, and in later lines that add fields to it."""


class Profile:
    """Measured cells of one environment.

    Args:
        environment: circumstances of all cells.
        cells: mappings with the keys above; of a value only ``us`` must be there. Of several with the same key and
            role the last one counts; of a table measured with cold and with warm weights the cold ones do, and those
            of few weights (``TimingPolicy.few_bytes``).

    Attributes:
        environment: circumstances of all cells.
        cells: the cells, in the order they came.

    Raises:
        ProfileError: a cell without a key, of another environment, or of a time that is not above 0.
    """

    def __init__(self, environment: Mapping[str, Any], cells: Iterable[Mapping[str, Any]]) -> None:
        self.environment: dict[str, Any] = dict(environment)
        known = self.environment.get("id")
        found: dict[str, dict[str, Any]] = {}
        for number, cell in enumerate(cells):
            missing = [k for k in ("op", "c_in", "c_out", "us") if k not in cell]
            if missing:
                raise ProfileError(
                    f"cell {number} of a profile was read; it has no {', '.join(missing)}; each cell needs op, "
                    "c_in, c_out and us: measure it again with halpiee profile"
                )
            if known is not None and cell.get("env", known) != known:
                raise ProfileError(
                    f"cell {number} was measured in the environment {cell['env']}, this profile is of {known}; "
                    "keep the profiles of two environments in two files"
                )
            check_time(cell, str(cell["op"]))
            name = cell_key(cell)
            found.pop(name, None)
            found[name] = dict(cell)
        self.cells: list[dict[str, Any]] = _in_one_state(
            list(found.values()), policy_for(kind_of_environment(self.environment))
        )
        self._by_table: dict[str, list[dict[str, Any]]] | None = None
        self._tables: dict[str, Table] = {}

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Reads a profile.

        Raises:
            ProfileError: no such file, no profile, another schema, or a line that is damaged and not the last.
        """
        environment, cells, _ = read_lines(Path(path))
        return cls(environment, cells)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the profile, whole or not at all, its cells sorted by key.

        Raises:
            OutputInUseError: the file exists.
            WriteError: it cannot be written.
        """
        lines = [header_line(self.environment), *(_line(c) for c in self.pack().cells)]
        write(path, "\n".join(lines) + "\n", overwrite=overwrite)

    def has_table(self, op: Op) -> bool:
        """Returns whether any cell of the op's table was measured."""
        return bool(self._cells_of(op))

    def table(self, op: Op) -> Table:
        """Returns the table of an op, whatever its width.

        Raises:
            ProfileError: there is none.
        """
        name = op.table_key()
        if name not in self._tables:
            self._tables[name] = Table(op, self._cells_of(op))
        return self._tables[name]

    def _cells_of(self, op: Op) -> list[dict[str, Any]]:
        """Returns the cells of an op's table.

        A sweep marks the cells that read an image; cells without a mark, as a grid over all widths has them, serve
        both.
        """
        if self._by_table is None:
            self._by_table = {}
            for cell in self.cells:
                if cell.get("role", "sweep") == "sweep":
                    self._by_table.setdefault(_features_key(Op.from_key(cell)), []).append(cell)
        cells = self._by_table.get(_features_key(op), [])
        if op.reads_image:
            return [c for c in cells if c.get("image")] or cells
        return [c for c in cells if not c.get("image")]

    def require(self, environment: Mapping[str, Any]) -> None:
        """Refuses an environment other than the profile's own.

        Raises:
            ProfileError: names the fields that differ.
        """
        other = differences(self.environment, environment)
        if other:
            stated = "; ".join(f"{k} is {a!r} in the profile, {b!r} here" for k, (a, b) in other.items())
            raise ProfileError(
                f"the profile was measured elsewhere: {stated}; measure this device: halpiee profile MODEL --out FILE"
            )

    def merge(self, *others: Profile) -> Profile:
        """Returns the union with profiles of the same environment; of cells with the same key the newest counts.

        Raises:
            ProfileError: the environments differ.
        """
        for other in others:
            other.require(self.environment)
        cells = [c for profile in (self, *others) for c in profile.cells]
        return Profile(self.environment, sorted(cells, key=lambda c: str(c.get("time", ""))))

    def pack(self) -> Profile:
        """Returns the same profile with its cells sorted by key, so that two versions compare line by line."""
        return Profile(self.environment, sorted(self.cells, key=_order))


def _in_one_state(cells: list[dict[str, Any]], policy: TimingPolicy) -> list[dict[str, Any]]:
    """Drops cells of many warm weights from tables that were measured with cold weights as well."""
    if len({c.get("cache", WARM) for c in cells}) < 2:
        return cells
    ops = [Op.from_key(c) for c in cells]
    cold = {op.table_key() for op, c in zip(ops, cells, strict=True) if c.get("cache") == COLD}
    return [
        c
        for op, c in zip(ops, cells, strict=True)
        if c.get("cache") == COLD
        or op.table_key() not in cold
        or policy.few_weights(op)
        or c.get("role") == "probe"
    ]


def cell_key(cell: Mapping[str, Any]) -> str:
    """Returns what names a cell: its op at its width, cache state and role."""
    op = Op.from_key(cell)
    named = {**op.key(), "cache": cell.get("cache", WARM), "role": cell.get("role", "sweep")}
    return json.dumps(named, sort_keys=True, separators=(",", ":"))


def header_line(environment: Mapping[str, Any]) -> str:
    """Returns the first line of a profile file."""
    stated = {"id": environment_id(environment), **environment}
    return json.dumps({"schema": SCHEMA, ENVIRONMENT: stated}, separators=(",", ":"), default=str)


def read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Reads a profile file.

    Returns:
        The environment, the cells, and how many bytes of the file are whole lines.
    """
    if not path.exists():
        raise ProfileError(
            f"the profile {path} was asked for, and there is no such file; check the path, or {AGAIN}"
        )
    raw = read_bytes(
        path, what=f"the profile {path}", advice="check the path", error=ProfileError, most_bytes=MOST_BYTES
    )
    whole = raw.rfind(b"\n") + 1
    lines = raw[:whole].split(b"\n")[:-1]
    head = _object(lines[0]) if lines else None
    schema = head.get("schema") if head is not None else None
    if schema != SCHEMA or head is None or not isinstance(head.get(ENVIRONMENT), dict):
        raise ProfileError(
            f"{path} was read as a profile; its first line states the schema {repr(schema)[:80]}, {SCHEMA!r} is read "
            f"here; {AGAIN}"
        )
    cells: list[dict[str, Any]] = []
    left_out: list[str] = []
    environment = _environment(head, path, 1)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cell = _object(line)
        if cell is None:
            if number == len(lines):
                whole -= len(line) + 1
                break
            raise ProfileError(f"{path} was read as a profile; line {number} is damaged; {REMOVE}")
        if LEFT_OUT in cell:
            left_out.append(str(cell[LEFT_OUT])[:4096])
        elif isinstance(cell.get(ENVIRONMENT), dict):
            environment |= _environment(cell, path, number)
        else:
            what = f"{path} was read as a profile; line {number}"
            sound(cell, Cell, what=what, advice=REMOVE, error=ProfileError)
            if wrong := contradiction(cell):
                raise ProfileError(f"{what} contradicts itself: it states {wrong}; {REMOVE}")
            cells.append(cell)
    if left_out:
        environment[LEFT_OUT] = list(dict.fromkeys([*environment.get(LEFT_OUT, []), *left_out]))
    return environment, cells, whole


def _object(line: bytes) -> dict[str, Any] | None:
    """Returns the object that a line holds, or None where it holds none."""
    try:
        found = parsed(line, what="", advice="")
    except UsageError:
        return None
    return found if isinstance(found, dict) else None


def _environment(line: Mapping[str, Any], path: Path, number: int) -> dict[str, Any]:
    """Returns the environment of a line, checked against its types."""
    found: dict[str, Any] = line[ENVIRONMENT]
    what = f"{path} was read as a profile; the environment in line {number}"
    sound(found, Environment, what=what, advice=AGAIN, error=ProfileError)
    return found


def _features_key(op: Op) -> str:
    """Returns the key of the op's table as if it read features."""
    return replace(op, c_in=IMAGE_CHANNELS + 1).table_key() if op.reads_image else op.table_key()


def _line(cell: Mapping[str, Any]) -> str:
    ordered = {k: cell[k] for k in KEYS if k in cell} | {k: v for k, v in cell.items() if k not in KEYS}
    return json.dumps(ordered, separators=(",", ":"))


def _order(cell: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return (
        Op.from_key(cell).table_key(),
        str(cell.get("role", "sweep")),
        int(cell["c_in"]),
        int(cell["c_out"]),
    )


MOST_CHANNELS = 2**20
"""Channels of one side; a table holds numbers for every width up to the widest."""

Width = Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]
Side = Annotated[int, Meta(ge=1, le=2**24)]
Dims = Annotated[list[Annotated[int, Meta(ge=0, le=2**16)]], Meta(max_length=3)]
Text = Annotated[str, Meta(max_length=4096)]
Id = Annotated[str, Meta(pattern=r"\A[ -~]{0,64}\Z")]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Us = Annotated[float, Meta(gt=0, le=1e12)]
"""A time in µs: above 0, below twelve days."""

Slow = tuple[Annotated[int, Meta(ge=1, le=2**16)], Annotated[float, Meta(gt=0, le=1e6)]]
Pattern = Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1, max_length=256)]


class Cell(TypedDict, total=False):
    """One measurement: the op's key, and its value."""

    op: Required[Text]
    c_in: Required[Width]
    c_out: Required[Width]
    us: Required[Us]
    kernel: Dims
    stride: Dims
    pad: Dims
    dilation: Dims
    groups: Width
    d: Side
    h: Side
    w: Side
    batch: Side
    tail: Annotated[list[Text], Meta(max_length=64)]
    dtype: Text
    layout: Text
    cache: Text
    ci_lo: Number
    ci_hi: Number
    n: Annotated[int, Meta(ge=0, le=2**40)]
    method: Text | None
    contention: Number
    slowdown: Number | None
    time: Number | Text | None
    env: Id
    role: Text
    steps: tuple[Width, Width] | None
    pattern: tuple[Pattern | None, Pattern | None] | None
    slow: tuple[Slow | None, Slow | None] | None
    image: bool
    energy_mj: Annotated[float, Meta(gt=0, le=1e12)]
    reference_us: Us
    sm_mhz: Annotated[int, Meta(ge=0, le=10**5)]
    throttled: Annotated[list[Text], Meta(max_length=8)]


class Environment(TypedDict, total=False):
    """Circumstances of all cells of a profile."""

    id: Id
    backend: Text
    device: Text
    dtype: Text
    layout: Text | None
    threads: Annotated[int, Meta(ge=1, le=4096)]
    cpu_flags: list[Text]
    cpu_caches: dict[Text, Text]
    not_measured: list[Text]
    anchor_us: Us
    tf32: bool | None


def contradiction(cell: dict[str, Any]) -> str | None:
    """Returns why the fields of a cell do not go together, or None."""
    groups = cell.get("groups", 1)
    if cell["c_in"] % groups or (cell["op"].startswith("conv") and cell["c_out"] % groups):
        return f"{cell['c_in']} and {cell['c_out']} channels in {groups} groups"
    for shares in cell.get("pattern") or ():
        if shares and (sorted(set(shares)) != shares or not math.isclose(shares[-1], 1, rel_tol=1e-6)):
            return f"the pattern {shares[:8]}, whose shares do not ascend to 1"
    for name in ("stride", "pad", "dilation"):
        if cell.get(name) and len(cell[name]) != len(cell.get("kernel") or cell[name]):
            return f"{name} {cell[name]} of the kernel {cell['kernel']}"
    if 0 in (cell.get("stride") or ()):
        return f"stride {cell['stride']}"
    if "ci_hi" in cell and "ci_lo" not in cell:
        return "an upper end of its interval and no lower one"
    return None
