"""``halpiee compare``: pruning against what one would do instead, at equal measured latency, over seeds."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import ScreenTalk, answer, kept_in, say, screen
from halpiee.errors import UsageError
from halpiee.options import described, option


@dataclass(frozen=True, kw_only=True)
class Compare(Answered):
    """What is compared, and where it goes."""

    file: Path = field(
        metadata=described("YAML file: network, data, budgets, seeds, contestants, epochs …", argument=True)
    )
    out: Path = field(metadata=described("Folder of the comparison; what is there goes on."))
    only: tuple[str, ...] = option((), "Carry out these contestants now.", unset="all that the file names")


@verb(
    "compare",
    Compare,
    examples=(
        "halpiee compare benchmarks/compare-cpu.yaml --out runs/compare",
        "halpiee compare benchmarks/compare-cpu.yaml --out runs/compare --only uniform --only early",
        "halpiee report runs/compare",
    ),
)
def command(given: Compare) -> None:
    """Train the contestants of FILE to each budget with each seed, export and time them, and compare.

    Contestants: dense, uniform, uniform-twice, uniform-flops, early and its variants, iee, iee-short, iee-pretrained,
    halp-linear, halp-joint, l1, cut, repaired, repair, torch-pruning; with -distilled behind the name they match the
    dense network's answers. The same command goes on where it was interrupted, also in several processes at once.
    """
    from halpiee.compare.comparison import read_comparison

    comparison = read_comparison(given.file)
    strange = [name for name in given.only if name not in comparison.contestants]
    if strange:
        raise UsageError(
            f"--only {strange[0]} was asked, and {given.file} names {', '.join(comparison.contestants)}; give one of "
            "them, or add it to the file"
        )
    from halpiee.compare.cells import Ground, carry_out, cells

    out = given.out
    talk = ScreenTalk()
    typed = shlex.join(["halpiee", "compare", str(given.file), "--out", str(out)])
    again = f"finished cells are kept; `{typed}` goes on"
    out.mkdir(parents=True, exist_ok=True)
    with kept_in(out / "ground", again):
        ground = Ground.of(comparison, out, talk)
        for cell in cells(comparison):
            if not given.only or cell.contestant in given.only:
                carry_out(cell, ground, out, talk)
    show_rows(out, given.as_json, setting=comparison.setting)


def show_rows(where: Path, as_json: bool, *, setting: str | None = None) -> None:
    """Writes the page of a comparison beside its rows, and prints its tables, or those of one setting."""
    from halpiee.compare.results import (
        HEAD,
        lines,
        read_rows,
        render_html,
        render_markdown,
        settings_in,
        standings,
    )
    from latency.files import write

    folder = where if where.is_dir() else where.parent
    rows = read_rows(where)
    write(folder / "comparison.html", render_html(rows), overwrite=True)
    write(folder / "comparison.md", render_markdown(rows), overwrite=True)
    shown = {key: these for key, these in settings_in(rows).items() if setting in (None, key)}

    def show() -> None:
        from rich.table import Table

        for these in shown.values():
            table = Table(*HEAD, title=these[0].title, title_justify="left")
            for line in lines(these):
                table.add_row(*line)
            screen().print(table)

    found = [{"setting": key, **asdict(s)} for key, these in shown.items() for s in standings(these)]
    answer({"rows": sum(map(len, shown.values())), "standings": found}, as_json, show)
    say(f"the page is {folder / 'comparison.html'}")
