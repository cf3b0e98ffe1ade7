"""A report as the one table that a command prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halpiee.report.values import comparison, title

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["table"]


def table(report: Mapping[str, Any]) -> Table:
    """Returns dense | pruned | ratio as a table for ``rich``.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
    """
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: a model's name may hold brackets.
    result = Table(title=Text(title(report)), title_justify="left")
    result.add_column("")
    for name in ("Dense", "Pruned", "Ratio"):
        result.add_column(name, justify="right")
    for row in comparison(report):
        result.add_row(*(Text(cell) for cell in (row.label, row.dense, row.pruned, row.ratio)))
    return result
