"""Mutations of valid JSON values and of the bytes of a file, for hypothesis."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31 - 1, 2**31, 2**63, 2**65, -(2**63), 10**400, 0.5, -0.0, 1e300, 1e-320,
    float("nan"), float("inf"), "", "x", "0", "nan", "\ud800", "\u0000", "a\nb", "ü" * 300, "forbidden_code:call",
    "subprocess:getoutput", "os:system", "hf-hub:x/y", "resnet20", "torchvision/resnet18", [], {}, [[]], [None],
    {"a": 1}, [1, 2], [1, 2, 3], [[1, 0, 2**40]], [[0, 2**62, 2**62]], "__class__", "forward",
)  # fmt: skip
"""Values that a field may be given instead of its own."""


def places(value: Any) -> list[tuple[Any, ...]]:
    """Returns the paths of everything inside a value; of long lists the first three items and the last."""
    found: list[tuple[Any, ...]] = [()]
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = sorted({*range(min(3, len(value))), *range(max(0, len(value) - 1), len(value))})
    for key in keys:
        found += [(key, *rest) for rest in places(value[key])]
    return found


def mutated(valid: Any) -> st.SearchStrategy[Any]:
    """Draws a value with one to three of its parts dropped, replaced, nested, doubled or renamed."""
    known, text = places(valid), json.dumps(valid)

    @st.composite
    def value(draw: st.DrawFn) -> Any:
        found = json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from(known))
            if path:
                change(draw, found, path)
            elif draw(st.integers(0, 19)) == 0:
                return copy.deepcopy(draw(st.sampled_from(ODD)))
        return found

    return value()


def change(draw: st.DrawFn, holder: Any, path: tuple[Any, ...]) -> None:
    """Changes what stands at a path, if an earlier change has left it there."""
    *way, key = path
    try:
        for step in way:
            holder = holder[step]
        holder[key]
    except (KeyError, IndexError, TypeError):
        return
    if not isinstance(holder, dict | list):
        return
    how = draw(st.sampled_from(("replace", "drop", "nest", "double", "rename", "number")))
    if how == "replace":
        holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif how == "drop":
        del holder[key]
    elif how == "nest":
        for _ in range(draw(st.sampled_from((1, 5, 200)))):
            holder[key] = [holder[key]]
    elif how == "double" and isinstance(holder, list):
        holder.append(copy.copy(holder[key]))
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(("", "x", "model", "\ud800", "a\nb", "-1", "9")))] = holder.pop(key)
    elif how == "number" and isinstance(holder[key], int | float):
        holder[key] = holder[key] + draw(st.sampled_from((-1, 1, 0.5, 2**31)))


def spoiled(text: bytes) -> st.SearchStrategy[bytes]:
    """Draws the bytes of a file cut short, with bytes replaced or put in, or nested beyond reason."""
    return st.composite(lambda draw: _spoiled(draw, text))()


def _spoiled(draw: st.DrawFn, text: bytes) -> bytes:
    how = draw(st.sampled_from(("cut", "byte", "insert", "deep", "encoding")))
    at = draw(st.integers(0, len(text)))
    if how == "cut":
        return text[:at]
    if how == "deep":
        return text[:at] + draw(st.sampled_from((b"[", b'{"a":'))) * 100_000
    if how == "encoding":
        return text.decode().encode(draw(st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-16-le"))))
    odd = draw(st.sampled_from((b"\xff", b"\x00", b"}", b"]", b",", b'"', b"1" * 5000, b"NaN", b"\\ud800")))
    return text[:at] + odd + text[at + (how == "byte") :]


def files(valid: Any) -> st.SearchStrategy[bytes]:
    """Draws the bytes of a malformed JSON file."""
    text = json.dumps(valid).encode()
    return st.one_of(mutated(valid).map(lambda value: json.dumps(value).encode()), spoiled(text))
