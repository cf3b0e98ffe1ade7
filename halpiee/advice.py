"""Writes what an error tells a user to type next: whole commands, and what a profile holds, in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halpiee.errors import ProfileError

if TYPE_CHECKING:
    import latency


def command(
    verb: str,
    model: str,
    *,
    shape: Sequence[object],
    width: float | None = None,
    classes: int | None = None,
    batch: int = 1,
    threads: int = 1,
    **more: str | Path | bool | None,
) -> str:
    """Returns a command line with every option of the network and its runtime that is not the default.

    ``shape`` is (channels, height, width) of the images, or inputs that spell themselves as they are typed; ``more``
    are further options, at the end.
    """
    named = not isinstance(shape[0], int)
    square = not named and shape[0] == 3 and shape[1] == shape[2]
    size = "224" if named else str(shape[1]) if square else "x".join(map(str, shape))
    parts = ["halpiee", verb, model]
    for one in shape if named else ():
        parts += ["--input", str(one)]
    given = {
        "size": None if size == "224" else size,
        "width": None if width is None else f"{width:g}",
        "classes": classes,
        "batch": None if batch == 1 else batch,
        "threads": None if threads == 1 else threads,
        **more,
    }
    for name, value in given.items():
        if value is not None and value is not False:
            parts += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(parts)


def contents_of(profile: latency.Profile) -> str:
    """Returns in words how many cells a profile holds, at which batches and input sizes."""
    from latency.op import Op

    ops = [Op.from_key(cell) for cell in profile.cells]
    if not ops:
        return "holds no cells (its sweep was cut short)"
    batches = ", ".join(map(str, sorted({op.batch for op in ops})))
    h, w = max(((op.h, op.w) for op in ops), key=lambda size: size[0] * size[1])
    return f"holds {len(ops):,} cells at batch {batches} on inputs of up to {h}×{w}"


def check_covers(
    profile: latency.Profile, path: str | Path, ops: Sequence[latency.Op], measuring: str
) -> None:
    """Refuses a profile that cannot price a conv or linear layer of a network, whose ops as built are given.

    Raises:
        ProfileError: what it holds, how many layers it lacks, and ``measuring``, the command but for --out that
            measures this network.
    """
    from latency.op import CONTRACTIONS, in_words

    def reaches(op: latency.Op) -> bool:
        try:
            profile.table(op).lookup(op.c_in, op.c_out)
        except ProfileError:
            return False
        return True

    if not profile.cells:
        raise ProfileError(
            f"--profile {path} {contents_of(profile)}; `{measuring} --out {path}` continues it"
        )
    priced = [op for op in ops if op.kind in CONTRACTIONS]
    lacking = [op for op in priced if not reaches(op)]
    if lacking:
        raise ProfileError(
            f"--profile {path} {contents_of(profile)}; it lacks {len(lacking)} of the network's {len(priced)} convs "
            f"and linears, the first of them {in_words(lacking[0])}; measure them with `{measuring} --out FILE`"
        )
