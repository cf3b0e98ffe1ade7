"""Reads files from outside: up to a size limit, converted to a type, or refused in one sentence.

Every kind of file has one type (a dataclass, a ``TypedDict`` or plain ``dict[str, …]``) whose annotations state what
each field may hold; msgspec fits the values to it. Nothing of a file is ever executed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from latency.errors import HalpieeError, UsageError

MOST_BYTES = 64 * 2**20
"""Largest file that is read whole."""

DEPTH = 64
"""How deep a file may be nested."""

T = TypeVar("T")


def read_bytes(
    path: Path,
    *,
    what: str,
    advice: str,
    error: type[HalpieeError] = UsageError,
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """Returns the bytes of a file or a pipe. ``what`` names it in the refusal, ``advice`` says what to do then.

    Raises:
        HalpieeError: of the class given: it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as problem:
        raise error(
            f"{what} cannot be read ({getattr(problem, 'strerror', None) or problem}); {advice}"
        ) from None
    if len(data) > most_bytes:
        raise error(f"{what} is larger than {most_bytes / 2**20:.0f} MiB, which no such file is; {advice}")
    return data


def parsed(data: bytes, *, what: str, advice: str, error: type[HalpieeError] = UsageError) -> Any:
    """Returns the value of a JSON text in UTF-8.

    Raises:
        HalpieeError: of the class given: it is none.
    """
    if _depth(data) > DEPTH:
        raise error(f"{what} is nested more than {DEPTH} deep, which no such file is; {advice}")
    try:
        value = json.loads(data.decode("utf-8"))
        if b"\\u" in data:  # half of a pair that no text holds and no screen shows
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise error(f"{what} is not UTF-8 text; {advice}") from None
    except ValueError as problem:
        raise error(f"{what} is not JSON ({_short(str(problem))}); {advice}") from None
    return value


def sound(value: Any, kind: type[T], *, what: str, advice: str, error: type[HalpieeError] = UsageError) -> T:
    """Returns a value of plain JSON types converted to ``kind``, whose annotations msgspec reads.

    Raises:
        HalpieeError: of the class given: it names the field, what was found and what was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError:
        raise error(f"{what} is nested too deep, which no such file is; {advice}") from None
    except (msgspec.ValidationError, OverflowError, UnicodeError) as problem:
        raise error(f"{what} {misfit(value, problem)}; {advice}") from None


def read_json(
    path: Path,
    kind: type[T],
    *,
    what: str,
    advice: str,
    error: type[HalpieeError] = UsageError,
    most_bytes: int = MOST_BYTES,
) -> T:
    """Returns the content of a JSON file, converted to a type; arguments as above."""
    data = read_bytes(path, what=what, advice=advice, error=error, most_bytes=most_bytes)
    return sound(
        parsed(data, what=what, advice=advice, error=error), kind, what=what, advice=advice, error=error
    )


def misfit(value: Any, problem: Exception) -> str:
    """Returns why a value does not fit: ``holds 'x' at groups[0].size, where int >= 1 is expected``."""
    text, _, place = str(problem).partition(" - at ")
    key = place.startswith("`key` in ")
    place = place.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    text = text.replace("`", "")
    lacking = re.fullmatch(r"Object missing required field (.+)", text)
    inside = f" at {place}" if place else ""
    if lacking:
        return f"lacks the field {lacking[1]!r}{inside}"
    expected = text.removeprefix("Expected ").partition(", got ")[0]
    if not text.startswith("Expected "):
        return f"does not fit{inside}: {text[:1].lower()}{text[1:]}"
    found, known = (None, False) if key else found_in(value, place)
    shown = (
        f"holds {_short(repr(found))}" if known else "holds another name" if key else "holds something else"
    )
    return f"{shown}{inside or ' as a whole'}, where {expected} is expected"


def found_in(value: Any, place: str) -> tuple[Any, bool]:
    """Returns what stands at a place such as ``groups[0].size``, and whether the place says which one."""
    for name, at in re.findall(r"\.?([^.\[\]]+)|\[([^\]]*)\]", place):
        try:
            if at:
                if not at.isdigit():
                    return None, False
                value = value[int(at)]
            else:
                value = value[name]
        except (KeyError, IndexError, TypeError):
            return None, False
    return value, True


def _depth(data: bytes) -> int:
    """Returns how deep the brackets of a JSON text are nested."""
    deepest = depth = 0
    if data.count(b"[") + data.count(b"{") > DEPTH:
        for mark in re.sub(rb'[^\[\]{}"]+|"(?:[^"\\]|\\.)*"', b"", data, flags=re.DOTALL):
            depth += 1 if mark in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + " …"
