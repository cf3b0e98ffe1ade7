"""A profile as a flat table for spreadsheets and data frames: CSV or Parquet, one row a cell.

Only a way out: a profile is read from JSON Lines alone.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from latency._files import write
from latency.errors import UsageError
from latency.profiles import KEYS, Profile

__all__ = ["ENDINGS", "columns", "export"]

ENDINGS = (".csv", ".parquet")


def columns(profile: Profile) -> dict[str, list[Any]]:
    """Returns column name → one value per cell; lists become JSON text, what a cell does not state is None."""
    found = dict.fromkeys(key for cell in profile.cells for key in cell)
    names = [*(k for k in KEYS if k in found), *(k for k in found if k not in KEYS)]

    def flat(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list | dict) else value

    return {name: [flat(cell.get(name)) for cell in profile.cells] for name in names}


def export(profile: Profile, path: str | Path) -> None:
    """Writes a profile's cells as CSV or Parquet, by the ending of the name; whole or not at all.

    Raises:
        UsageError: another ending.
        OutputInUseError: the file exists.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"cells were to be written to {path}; they are written as {' or '.join(ENDINGS)}: end the name so"
        )
    write(path, (_csv if path.suffix == ".csv" else _parquet)(columns(profile)))


def _csv(table: dict[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode()


def _parquet(table: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(pa.table(table), content)
    return content.getvalue()
