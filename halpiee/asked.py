"""Reads a budget that is written as text. Imports no torch, so that the command line can check it at once."""

from __future__ import annotations

import re

from halpiee.errors import UsageError

__all__ = ["parse_budget"]


def parse_budget(text: str) -> tuple[float | None, float | None]:
    """Returns (µs, fraction) of a budget such as ``0.5``, ``50%``, ``12.5ms`` or ``800us``; one of them is None.

    Raises:
        UsageError: the text is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s|%)?\s*", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) <= 1e12:
        raise UsageError(
            f"the budget {text[:80]!r} was asked; give a share of the dense latency such as 0.5 or 50%, "
            "or a time such as 12.5ms or 800us"
        )
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit in ("", "%"):
        fraction = number / 100 if unit == "%" else number
        if fraction > 1:
            raise UsageError(
                f"the budget {text!r} is {fraction:g} times the dense latency; "
                f"give a share up to 1, or a time with its unit such as {number:g}us or {number:g}ms"
            )
        return None, fraction
    return number * {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}[unit], None
