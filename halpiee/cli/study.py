"""``halpiee study``: a paper's experiment, or one's own, over seeds, to its table and figure.

``halpiee compare``: pruning against what one would do instead, at equal measured latency, over seeds.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from halpiee import ranges
from halpiee.cli.options import Answered, verb
from halpiee.cli.output import Interrupted, ScreenTalk, answer, kept_in, say, screen
from halpiee.errors import UsageError, unknown
from halpiee.options import described, option
from halpiee.training.config import OPTIONS

MACS_PER_S = 2e10
"""Multiply-accumulates a second of one core in training a CIFAR network; a GPU does a hundred times as many."""

IMAGES = {32: 50_000, 64: 100_000, 224: 1_281_167, 512: 16_551}
"""Training images of CIFAR, TinyImageNet, ImageNet and PASCAL VOC 07+12, by pixels of a side."""

MACS = {
    "resnet8": (12.5e6, 32), "resnet20": (40.8e6, 32), "resnet56": (125.7e6, 32), "resnet50_cifar": (1297.8e6, 32),
    "vgg13_bn": (228.3e6, 32), "vgg16_bn": (313.2e6, 32), "vgg19_bn": (398.1e6, 32), "wrn22_2": (157.7e6, 32),
    "mobilenet_v1_cifar": (46.4e6, 32), "resnet18_modified": (2221.8e6, 64), "resnet50": (4089e6, 224),
    "mobilenet_v1": (568.7e6, 224), "ssd512_resnet50": (45917e6, 512),
}  # fmt: skip
"""Network → multiply-accumulates of one image, pixels of a side; see ``tests/zoo/test_networks.py``."""


@dataclass(frozen=True, kw_only=True)
class Studied(Answered):
    """Which study, on what, and where it goes."""

    study: tuple[str, ...] = option(
        (), "A study's name (--list shows them) or its YAML file.", argument=True, metavar="NAME"
    )
    data: str | None = option(None, "Data, as `halpiee train --data` takes it.")
    seeds: ranges.Epochs = option(3, "Trainings of each cell, with the seeds 0, 1, …")
    out: Path | None = option(
        None, "Folder of the study; the same command continues it, in several processes too."
    )
    scale: str = option("1", "Share of the paper's epochs, or `smallest`: seconds, to try a study out.")
    size: ranges.Side | None = option(None, "Pixels of a side to bring the images to.", unset="as they are")
    device: str = option("auto", "Device of the trainings: auto, cpu, cuda or cuda:1.")
    settings: tuple[str, ...] = option(
        (), "An option of `halpiee train` for all cells; may be repeated.", typed="--set", metavar="KEY=VALUE"
    )
    cell: str | None = option(None, "Do this one cell (--plan names them).")
    plan: bool = option(False, "Print the command of each cell, and train nothing.")
    listed: bool = option(False, "List the studies with their source, cells and time.", typed="--list")


@verb(
    "study",
    Studied,
    examples=(
        "halpiee study --list",
        "halpiee study at-init-ladder --data path/to/cifar10 --seeds 3 --out studies/ladder",
        "halpiee study at-init-ladder --data digits --size 16 --seeds 1 --scale smallest --out studies/trial",
        "halpiee study granet-cifar --data cifar100 --scale 0.1 --plan",
        "halpiee study my_study.yaml --data path/to/images --seeds 5 --out studies/mine",
    ),
)
def command(given: Studied) -> None:
    """Repeat a paper's experiment: a grid of trainings over seeds, to a table, a figure and a page.

    Every training is one row of DIR/rows.jsonl. Interrupted or killed, the same command goes on; several processes
    with the same command share the work.
    """
    from halpiee.studies.study import names, read, scale_of

    if given.listed:
        found = [_entry(read(name), given.seeds) for name in names()]
        answer({"studies": found}, given.as_json, lambda: _print(found))
        return
    if len(given.study) != 1:
        raise UsageError("`halpiee study` takes the name of one study, or a YAML file; --list shows them")
    named = {"device": given.device, "data": given.data, "size": given.size}
    over = {**_typed(given.settings), **{key: value for key, value in named.items() if value is not None}}
    study = read(given.study[0], scale=scale_of(given.scale), over=over)
    if given.plan:
        lines = _commands(study, given)
        answer({"commands": lines}, given.as_json, lambda: click.echo("\n".join(lines)))
        return
    missing = [name for name, value in (("--data", given.data), ("--out", given.out)) if value is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see `halpiee study --help` for examples")
    _carry_out(study, given)


def _carry_out(study: Any, given: Studied) -> None:
    """Does the cells, and shows what they come to."""
    from halpiee.studies.results import sheet_of, show
    from halpiee.studies.work import check_data, work

    out, again = given.out or Path("."), _again(given)
    check_data(study, given.data or "", given.size)
    try:
        rows = work(study, sheet_of(out), seeds=given.seeds, talk=ScreenTalk(), only=given.cell)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"what is done is kept; `{again}` continues it") from stop
    if given.cell is not None:
        answer(
            {"cell": given.cell, "values": rows[0].values},
            given.as_json,
            lambda: say(f"{given.cell} is done"),
        )
        return
    files = show(study, rows, out, again)
    table = (out / "table.md").read_text(encoding="utf-8")
    answer(
        {"study": study.name, "rows": len(rows), "files": [str(path) for path in files]},
        given.as_json,
        lambda: click.echo(table),
    )
    say(f"the page is {out / 'index.html'}")


def _typed(given: tuple[str, ...]) -> dict[str, Any]:
    """Returns the options of ``--set``."""
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--set {text[:80]} was asked; write KEY=VALUE, such as --set epochs=10")
        if name not in OPTIONS:
            close = unknown(
                key, (option.replace("_", "-") for option in OPTIONS), "see `halpiee train --help`"
            )
            raise UsageError(f"--set {text[:80]} was asked, which is no option of `halpiee train`; {close}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text[:80]} was asked, whose value cannot be read; quote it") from error
    return found


def _entry(study: Any, seeds: int) -> dict[str, Any]:
    cells = study.cells(seeds)
    return {
        "name": study.name,
        "about": study.file.about,
        "source": study.file.source,
        "cells": len(cells),
        "seeds": seeds,
        "core_hours": core_hours(cells),
    }


def core_hours(cells: Sequence[Any]) -> float | None:
    """Returns the hours that one core takes for some cells; ``None`` where a network's size is not known.

    A training step is three forwards. A sparse network costs a core what the dense one does, and a rewound training is
    two.
    """
    total = 0.0
    for cell in cells:
        known = MACS.get(str(cell.options.get("model")))
        if known is None:
            return None
        macs, side = known
        twice = 2 if cell.options.get("method") in ("ltr", "lth", "lrr") else 1
        onward = cell.knobs.get("onward", 0) * len(cell.knobs.get("times", ()))
        total += 3 * macs * IMAGES[side] * (twice * cell.options.get("epochs", 20) + onward)
    return total / MACS_PER_S / 3600


def _print(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        hours = entry["core_hours"]
        time = "time unknown" if hours is None else f"about {hours:,.0f} core hours"
        click.echo(f"{click.style(entry['name'], bold=True)}  {entry['about']}")
        click.echo(f"    {entry['source']}")
        click.echo(f"    {entry['cells']} trainings with {entry['seeds']} seeds, {time} at the paper's scale")


def _commands(study: Any, given: Studied) -> list[str]:
    """Returns the command of each cell: of `halpiee train`, or of this verb where a cell is another probe."""
    out = given.out or Path("DIR")
    found = []
    for cell in study.cells(given.seeds):
        if study.file.probe != "train":
            found.append(f"{_again(given)} --cell {cell.name}")
            continue
        run = out / "runs" / (cell.after or "")
        options: Mapping[str, Any] = {
            "data": "DATA",
            "baseline": False,
            **{k: v.replace("{run}", str(run)) if isinstance(v, str) else v for k, v in cell.options.items()},
            "seed": cell.seed,
            "out": str(out / "runs" / cell.name),
        }
        words = [str(options.get("model", "MODEL"))]
        for key, value in options.items():
            # some options are of files and Python alone
            typed = key == "out" or OPTIONS[key].help.on_command_line
            if key == "model" or value in (None, ()) or not typed:
                continue
            name = key.replace("_", "-")
            if not isinstance(value, bool):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(f"--{name} {shlex.quote(text)}")
            elif value or OPTIONS[key].default:
                words.append(f"--{name}" if value else f"--no-{name}")
        found.append(f"halpiee train {' '.join(words)}")
    return found


def _again(given: Studied) -> str:
    """Returns the command that continues this one."""
    words = ["halpiee", "study", given.study[0], "--data", given.data or "DATA", "--seeds", str(given.seeds)]
    words += ["--scale", given.scale, "--out", str(given.out or "DIR")]
    words += ["--size", str(given.size)] if given.size is not None else []
    words += ["--device", given.device] if given.device != "auto" else []
    for setting in given.settings:
        words += ["--set", setting]
    return shlex.join(words)


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
def compare(given: Compare) -> None:
    """Train the contestants of FILE to each budget with each seed, export and time them, and compare.

    Contestants: dense, uniform, uniform-twice, uniform-flops, scaled, scaled-twice, early, iee, iee-short,
    iee-pretrained, halp-linear, halp-joint, l1, cut, repaired, repaired-scaled, repair, torch-pruning; those with
    -distilled behind match the dense network's answers. The same command goes on where it was interrupted, also in
    several processes at once.
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
