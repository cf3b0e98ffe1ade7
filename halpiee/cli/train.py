"""``halpiee train`` and ``prune``: a network brought to a latency, with training and without; the run can resume.

``halpiee demo`` takes the whole path on a small network, with no download and no GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from halpiee import ranges
from halpiee.cli.options import Answered, verb
from halpiee.cli.output import MISSED, ScreenTalk, answer, free_folder, kept_in, say, wide_screen
from halpiee.cli.report import write_site
from halpiee.errors import OutputInUseError, UsageError, WriteError
from halpiee.options import described, nested, option
from halpiee.shared_options import Seeded
from halpiee.training.config import RUN, Settings
from halpiee.training.ranks import ALONE, Ranks, joined
from latency.files import contents


@dataclass(frozen=True, kw_only=True)
class Placed(Answered):
    """Where a run is stored, and whether it continues."""

    out: Path = field(metadata=described("Folder of the run; never overwritten.", RUN))
    resume: bool = option(False, "Continue the run in --out.", RUN)


@dataclass(frozen=True, kw_only=True)
class Start(Placed):
    """Where a run is stored, and what it starts from."""

    recipe: str | None = option(
        None, "A paper's settings by name (`halpiee methods --recipes`), or a YAML file of options.", RUN
    )
    scale: ranges.Positive | None = option(
        None,
        "Share of the epochs, and of all that is counted in steps, for a trial of this command: 0.01.",
        RUN,
        unset="1",
    )
    trust_run: bool = option(False, "Resume a run from elsewhere whose settings name functions.", RUN)


@verb(
    "train",
    Start,
    over=Settings,
    examples=(
        "halpiee train resnet20 --data digits --size 16 --budget 0.5 --epochs 4 --out runs/digits",
        "halpiee train resnet20 --data path/to/cifar10 --budget 0.5 --epochs 60 --batch-size 128 --out runs/cifar",
        "halpiee train resnet20 --data digits --size 16 --method rigl --sparsity 0.9 --epochs 4 --out runs/rigl",
        "halpiee train resnet20 --data digits --size 16 --method filter --criterion l1 --rounds 5 --sparsity 0.65 "
        "--out runs/filter",
        "halpiee train resnet20 --data path/to/cifar10 --recipe granet-cifar --sparsity 0.95 --out runs/granet",
        "halpiee train resnet20 --data digits --size 16 --method ltr --rewind 20 --sparsity 0.9 --epochs 4 "
        "--out runs/ticket",
        "halpiee train resnet50 --data path/to/imagenet --size 224 --recipe iee-structured-imagenet --scale 0.01 "
        "--out runs/trial",
        "halpiee train --from-run runs/cifar --epochs 10 --lr 0.01 --out runs/tuned",
        "halpiee train --resume --out runs/cifar",
    ),
)
def command(given: Start, typed: dict[str, Any]) -> None:
    """Train MODEL to a latency: profile, dense baseline, a network within the budget, export, measure.

    With --sparsity instead of --budget, train to a share of weights or filters, by any of `halpiee methods`.

    MODEL is a zoo, torchvision or timm name, or package.module:function. Interrupted, the run is saved and
    continues with --resume; on a CPU it ends bit-equal to one that was never interrupted. Diverged, it goes on with
    --resume and a lower --lr or --clip, and its report says so.
    """
    from halpiee.recipes import read, shortened, told, under

    read_of: dict[str, str] = {}
    if given.recipe is not None:
        options = under(read(given.recipe).options, typed)
        read_of = dict.fromkeys(options.keys() - typed.keys(), f"--recipe {given.recipe}")
        typed = {**options, **typed}
    ranks = joined(str(typed.get("device", "auto")))
    if given.scale is not None:
        typed, before = shortened(typed, given.scale), typed
        if ranks.first:
            say(f"--scale {given.scale:g}: {told(before, typed)}")
    settings = gather(typed, given.out, given.resume, read_of=read_of, trust=given.trust_run)
    carry_out(settings, given.out, resume=given.resume, as_json=given.as_json, ranks=ranks)


TAKEN = (
    "model weights data budget also profile images rounds criterion value protect_first protect only min_width "
    "multiple_of width size inputs backend batch threads device seed"
)
"""The options of a training that a pruning without training has."""


@verb(
    "prune",
    Placed,
    over=Settings,
    only=TAKEN.split(),
    examples=(
        "halpiee prune resnet20 --data digits --size 16 --weights runs/digits/dense.safetensors --budget 0.5 "
        "--out runs/half",
        "halpiee prune resnet50 --data path/to/imagenet --size 224 --weights resnet50.safetensors "
        "--profile resnet50.jsonl --budget 12.5ms --out runs/resnet50",
    ),
)
def prune(given: Placed, typed: dict[str, Any]) -> None:
    """Cut trained MODEL to a latency and solve its layers again from unlabelled images: minutes, no training.

    Whole channels go where the latency is; each layer that stays is then fitted to what the trained network says
    (ridge regression). The folder is a run: `halpiee export`, `bench` and `report` take it.
    """
    settings = gather({**typed, "method": "repair"}, given.out, given.resume)
    carry_out(settings, given.out, resume=given.resume, as_json=given.as_json)


def gather(
    typed: dict[str, Any],
    out: Path,
    resume: bool,
    *,
    read_of: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Settings:
    """Returns the settings: the given options, over those of the run that is resumed.

    ``read_of`` names the file that options were read of which nobody typed.
    """
    from halpiee.training.checkpoint import check_names, read_values
    from halpiee.zoo.registry import check_named

    values: dict[str, Any] = {}
    stored = out / "settings.json"
    for key, where in (read_of or {}).items():
        if key in ("model", "data"):
            option = "--data" if key == "data" else "MODEL"
            check_named(typed[key], where=f"{where} names the {key}", instead=f"type {option} as well")
    if resume and stored.is_file():
        values = read_values(out)
        if not trust:
            check_names(out, values, instead="type the name again, or --trust-run", typed=typed)
    elif resume:
        raise UsageError(f"--resume was asked, but {out} holds no run; leave --resume out to start one")
    if not resume and typed.get("from_run") is not None:
        values = own_options(Path(typed["from_run"]), typed, trust=trust)
    values = nested(Settings, typed, values)
    masks = values["masks"]
    limited = (
        masks.get("sparsity") is not None
        or masks.get("distribution") == "nm"
        or masks.get("mask") is not None
    )
    needed = (
        ("model", "data") if limited or values.get("from_run") is not None else ("model", "data", "budget")
    )
    missing = [f"--{key}" if key != "model" else "MODEL" for key in needed if values.get(key) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see `halpiee train --help` for examples")
    return Settings.from_dict(values, where=str(stored) if resume else "settings")


OWN = ("model", "data", "width", "size", "inputs", "task", "loading", "batch", "threads", "backend")
"""Options that a run that is trained on brings along; what is typed comes first."""


def own_options(source: Path, typed: Mapping[str, Any], *, trust: bool) -> dict[str, Any]:
    """Returns the options of a finished run with which its pruned network is trained on; no dense one is."""
    from halpiee.training.checkpoint import check_names, read_values

    values = read_values(source)
    if not trust:
        check_names(source, values, instead="type the name again, or --trust-run", typed=typed)
    return {**{key: values[key] for key in OWN if key in values}, "baseline": False}


def carry_out(settings: Settings, out: Path, *, resume: bool, as_json: bool, ranks: Ranks = ALONE) -> None:
    """Runs the settings in the folder, prints the table, exits 4 when the promise is missed.

    Of several ranks all train, and the first one says so.
    """
    report = finished(settings, out, resume=resume, ranks=ranks)
    if ranks.first:
        show(report, out, as_json=as_json)
    if not report["promise"]["met"]:
        raise click.exceptions.Exit(MISSED)


def finished(settings: Settings, out: Path, *, resume: bool = False, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Runs the settings in the folder to the end, and returns the report."""
    ranks.once(lambda: check_free(out, resume=resume))
    from halpiee.training.pipeline import execute
    from halpiee.training.preflight import open_run

    again = f"the run is saved; `halpiee train --resume --out {shlex.quote(str(out))}` continues it"
    with kept_in(out / "settings.json", again), ranks.heard():
        run = open_run(settings, out, ScreenTalk(), resume=resume, ranks=ranks)
        try:
            report = execute(run)
        except WriteError as error:
            raise WriteError(f"{error}; {again}") from error
    ranks.leave()
    return report


def show(report: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Prints the report of a run, its promise, and where its page is."""

    def tables() -> None:
        from halpiee.report import runs_table, table

        wide_screen().print(table(report))
        if beside := report.get("beside"):
            wide_screen().print(runs_table({"this run": report, **beside}))

    promise = report["promise"]
    answer(report, as_json, tables)
    say(f"{promise['text']}; the page is {out / 'report.html'}, the network {out / 'pruned.onnx'}")
    if not promise["met"]:
        say("halpiee: the promise is missed; a quieter machine, or another --budget, may help")


def check_free(out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something before torch is loaded; what a refused run has left is taken."""
    if not resume and out.exists() and (not out.is_dir() or set(contents(out)) - {"profile.jsonl"}):
        raise OutputInUseError(
            f"--out {out} already holds something; add --resume to continue a run there, or choose another folder"
        )


@dataclass(frozen=True, kw_only=True)
class Demo(Seeded, Answered):
    """Where the demonstration goes."""

    out: Path | None = option(None, "Folder of the run.", unset="runs/demo, runs/demo-2 …")
    budget: str = option("0.5", "Share of the dense latency, or a time such as 300us.")


@verb("demo", Demo, examples=("halpiee demo", "halpiee demo --out runs/first --json"))
def demo(given: Demo) -> None:
    """Profile, train dense and to half the latency, shrink, export, measure: three to six minutes on two cores.

    Beside them a uniformly narrower network of the same latency trains as long: what one would do without pruning.

    A ResNet-20 of twice the usual width, on scikit-learn's handwritten digits at 16×16, through ONNX Runtime on
    this CPU.
    """
    settings = Settings(
        model="resnet20",
        width=2,
        data="digits",
        size=16,
        budget=given.budget,
        method="iee",
        epochs=10,
        batch_size=64,
        seed=given.seed,
    )
    from halpiee.training.job import PROFILE

    out = given.out or free_folder(Path("runs/demo"))
    report = finished(settings, out)
    uniform = replace(settings, method="small-dense", profile=str(out / PROFILE), baseline=False)
    beside = {"uniform": finished(uniform, out / "uniform")}
    show(report | {"beside": beside}, out, as_json=given.as_json)
    write_site(out / "site", {"pruned": report} | beside)
    if not report["promise"]["met"]:
        raise click.exceptions.Exit(MISSED)
