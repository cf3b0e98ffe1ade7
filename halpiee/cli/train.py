"""``halpiee train``: a network trained to a latency budget, in a folder that resumes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halpiee.cli.options import GroupedCommand, Ranged, examples, heading, json_option, ranged
from halpiee.cli.output import ScreenTalk, answer, kept_in, say, screen
from halpiee.errors import OutputInUseError, UsageError, WriteError
from halpiee.training.options import OPTIONS
from latency._files import contents

if TYPE_CHECKING:
    from halpiee.training.settings import Settings

__all__ = ["carry_out", "command"]

MISSED = 4

OPTION = {"model": "MODEL", "data": "--data"}
"""How what may name code is typed."""


def number(option: str) -> Ranged:
    """Returns the type of an option that is a number of the settings."""
    return ranged(OPTIONS[option][1], option)


run, goal, way, exchange, schedule = (
    heading(title)
    for title in ("Run", "Goal", "Method", "IEE: prune, improve, explore, grow", "Schedule, dense and pruned")
)


@click.command(
    "train",
    cls=GroupedCommand,
    epilog=examples(
        "halpiee train resnet20 --data digits --size 16 --budget 0.5 --epochs 4 --out runs/digits",
        "halpiee train resnet20 --data path/to/cifar10 --budget 0.5 --epochs 60 --batch-size 128 --out runs/cifar",
        "halpiee train resnet20 --data digits --size 16 --method rigl --sparsity 0.9 --epochs 4 --out runs/rigl",
        "halpiee train resnet20 --data digits --size 16 --method filter --criterion l1 --rounds 5 --sparsity 0.65 "
        "--out runs/filter",
        "halpiee train resnet20 --data path/to/cifar10 --recipe granet-cifar --sparsity 0.95 --out runs/granet",
        "halpiee train resnet20 --data digits --size 16 --method ltr --rewind 20 --sparsity 0.9 --epochs 4 "
        "--out runs/ticket",
        "halpiee train --resume --out runs/cifar",
    ),
)
@click.argument("model", required=False)
@run(
    "--data", help="Parquet folder, ImageFolder tree, cifar10, cifar100, digits, or package.module:function."
)
@run("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; never overwritten.")
@run("--resume", is_flag=True, help="Continue the run in --out.")
@run("--recipe", help="A paper's settings by name (`halpiee methods --recipes`), or a YAML file of options.")
@run("--trust-run", "trust", is_flag=True, help="Resume a run from elsewhere whose settings name functions.")
@run("--weights", type=click.Path(), help="Start from these safetensors weights.")
@run("--width", type=number("width"), help="Width multiplier of a zoo network.")
@run("--size", type=number("size"), help="Pixels of a side to bring the images to.  [default: as they are]")
@run("--baseline/--no-baseline", default=None, help="Train a dense network beside.  [default: yes]")
@run("--device", help="Where to train: auto, cpu, cuda.  [default: auto]")
@run("--seed", type=number("seed"), help="Of every random choice.  [default: 0]")
@goal("--budget", help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).")
@goal(
    "--sparsity",
    type=number("sparsity"),
    help="Share of weights or filters to remove (0.9); instead of --budget.",
)
@goal("--units", type=click.Choice(["weights", "filters"]), help="Of what.  [default: the method's]")
@goal(
    "--distribution",
    type=click.Choice(["uniform", "erk", "global", "nm"]),
    help="How a sparsity is spread over layers.  [default: the paper's]",
)
@goal("--nm", help="Pattern of --distribution nm: N of M input weights stay.  [default: 2:4]")
@goal("--mask", type=click.Path(), help="The final mask of another run, trained anew by --method static.")
@goal("--profile", help="A profile measured before; otherwise one is measured into the run's folder.")
@goal(
    "--backend",
    type=click.Choice(["onnxruntime", "torch"]),
    help="Runtime that is profiled and timed; --profile says its own.  [default: onnxruntime]",
)
@goal("--batch", type=number("batch"), help="Images per inference.  [default: 1]")
@goal("--threads", type=number("threads"), help="Threads of the runtime.  [default: 1]")
@goal(
    "--protect-first/--no-protect-first",
    default=None,
    help="Leave the first layer whole within --budget.  [default: resnet50 and mobilenet_v1, as in the papers]",
)
@goal("--solver", type=click.Choice(["joint", "cpsat", "linear"]), help="[default: joint]")
@way("--method", help="How the budget is met; `halpiee methods` lists them.  [default: iee]")
@way("--criterion", help="Whose scores choose (filter, snip, lrr …): magnitude, l1, grasp, inverted-snip …")
@way(
    "--rounds",
    type=number("rounds"),
    help="Rounds of pruning, survivors scored again (filter: 1, 5, 25; lrr: trainings).",
)
@way(
    "--images",
    type=number("images"),
    help="Training images that --method repair solves from.  [default: 512]",
)
@way("--regrow", is_flag=False, flag_value=0.3, type=number("regrow"), help="Exchange this share of filters.")
@way(
    "--interval",
    type=number("interval"),
    help="Steps between two mask updates.  [default: the paper's, or less]",
)
@way(
    "--fraction",
    type=number("fraction"),
    help="Share exchanged by the first update (SET, RigL, SNFS, GraNet).",
)
@way("--initial", type=number("initial"), help="Sparsity that GraNet starts from.  [default: 0]")
@way("--first", type=number("first"), help="Share of the training where GMP and GraNet begin to prune.")
@way(
    "--last", type=number("last"), help="Share where they have pruned; where SET, RigL and SNFS update last."
)
@way("--at", type=number("at"), help="Steps before one-shot pruning.  [default: 0]")
@way(
    "--rewind",
    type=number("rewind"),
    help="Step of the dense training whose weights ltr takes.  [default: 1.6% of it]",
)
@way("--restart", is_flag=True, default=None, help="Begin the schedule anew after pruning (--at, ltr).")
@way(
    "--init",
    type=click.Choice(["random", "magnitude", "random-scores"]),
    help="First units.  [default: random; from --weights by their scores]",
)
@way(
    "--ablation",
    type=click.Choice(["shuffle", "reinit", "normal"]),
    help="Shuffle the mask in each layer; draw weights anew under it; begin with N(0, 1).",
)
@exchange("--cycles", type=number("cycles"), help="Prune-and-grow cycles.  [default: 8]")
@exchange("--h", type=number("h"), help="Steps before a prune; with --j and --q instead of --cycles.")
@exchange("--j", type=number("j"), help="Steps between prune and exploring.")
@exchange("--q", type=number("q"), help="Steps of exploring.")
@exchange(
    "--omega", type=number("omega"), help="Share of the budget exchanged in the first cycle.  [default: 0.3]"
)
@exchange(
    "--decay", type=click.Choice(["exponential", "cosine"]), help="How it falls.  [default: exponential]"
)
@exchange(
    "--end", type=number("end"), help="Share of the training after which updates have ended.  [default: 0.75]"
)
@exchange("--explore-init", type=click.Choice(["model", "zero"]), help="Values of what was never active.")
@exchange("--grow-by", type=click.Choice(["score", "random"]), help="[default: score]")
@exchange(
    "--grow-values", type=click.Choice(["last", "zero"]), help="Values of grown units.  [default: last]"
)
@exchange("--freeze/--no-freeze", default=None, help="Active units stand still meanwhile.  [default: yes]")
@exchange("--explore-norm", type=click.Choice(["batch", "running"]), help="What they normalise by then.")
@schedule("--epochs", type=number("epochs"), help="Of the dense and the pruned network alike.  [default: 20]")
@schedule("--batch-size", type=number("batch_size"), help="Images per training step.  [default: 64]")
@schedule("--lr", type=number("lr"), help="Peak learning rate.  [default: 0.1]")
@schedule("--warmup", type=number("warmup"), help="Share of the training in which it rises.  [default: 0.05]")
@schedule(
    "--drops", help="Shares of the training where it drops: 0.5,0.75.  [default: half a cosine to zero]"
)
@schedule("--drop", type=number("drop"), help="Factor of each drop.  [default: 0.1]")
@schedule("--momentum", type=number("momentum"), help="Of SGD.  [default: 0.9]")
@schedule("--nesterov/--no-nesterov", default=None, help="Whether it is Nesterov's.  [default: yes]")
@schedule(
    "--weight-decay",
    type=number("weight_decay"),
    help="On weights, not on norms and biases.  [default: 0.0005]",
)
@schedule("--label-smoothing", type=number("label_smoothing"), help="Of the cross-entropy.  [default: 0]")
@json_option
def command(model: str | None, out: Path, resume: bool, trust: bool, as_json: bool, **options: Any) -> None:
    """Train MODEL to a latency: profile, dense baseline, IEE to the budget, shrink, export, measure.

    With --sparsity instead of --budget, train to a share of weights or filters, by any of `halpiee methods`.

    MODEL is a zoo, torchvision or timm name, or package.module:function. Interrupted, the run is saved and
    continues with --resume; on a CPU it ends bit-equal to one that was never interrupted.
    """
    recipe = options.pop("recipe")
    given = {key: value for key, value in options.items() if value is not None}
    if "drops" in given:
        given["drops"] = shares(given["drops"])
    if model is not None:
        given["model"] = model
    read_of: dict[str, str] = {}
    if recipe is not None:
        from halpiee.recipes import read

        goals = {"budget", "sparsity", "mask"}
        options = dict(read(recipe).options)
        if goals & set(given):
            if "budget" not in given:  # what a latency leaves whole goes with the recipe's latency
                goals |= {"protect_first"}
            options = {key: value for key, value in options.items() if key not in goals}
        read_of = {key: f"--recipe {recipe}" for key in options.keys() - given.keys()}
        given = {**options, **given}
    settings = gather(given, out, resume, read_of=read_of, trust=trust)
    carry_out(settings, out, resume=resume, as_json=as_json)


def shares(text: str) -> list[float]:
    """Returns the shares of a list such as ``0.5,0.75`` or ``80/160,120/160``.

    Raises:
        UsageError: one of them is none.
    """
    from halpiee.training.options import typed

    return list(
        typed({"drops": [part for part in text.split(",") if part]}, where=f"--drops {text}")["drops"]
    )


def gather(
    given: dict[str, Any],
    out: Path,
    resume: bool,
    *,
    read_of: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Settings:
    """Returns the settings of the options that were given, over those of the run that is resumed.

    Args:
        given: option → value, as typed or from a recipe.
        out: folder of the run.
        resume: whether it is resumed.
        read_of: those options that were not typed, with the file they are from.
        trust: whether the folder's settings may name any function.

    Raises:
        UsageError: options that are missing or do not go together; code to call that was not typed.
    """
    from halpiee.training.options import nested
    from halpiee.training.settings import Settings
    from halpiee.training.stored import check_names, read_values
    from halpiee.zoo.trust import check_named

    values: dict[str, Any] = {}
    stored = out / "settings.json"
    for key, where in (read_of or {}).items():
        if key in ("model", "data"):
            check_named(given[key], where=f"{where} names the {key}", instead=f"type {OPTION[key]} as well")
    if resume and stored.is_file():
        values = read_values(out)
        if not trust:
            check_names(out, values, instead="type the name again, or --trust-run", typed=given)
    elif resume:
        raise UsageError(f"--resume was asked, but {out} holds no run; leave --resume out to start one")
    values = nested(given, values)
    masks = values["masks"]
    limited = (
        masks.get("sparsity") is not None
        or masks.get("distribution") == "nm"
        or masks.get("mask") is not None
    )
    needed = ("model", "data") if limited else ("model", "data", "budget")
    missing = [f"--{key}" if key != "model" else "MODEL" for key in needed if values.get(key) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see `halpiee train --help` for examples")
    return Settings.from_dict(values, where=str(stored) if resume else "settings")


def carry_out(settings: Settings, out: Path, *, resume: bool, as_json: bool) -> None:
    """Runs the settings in the folder, prints the table, exits 4 when the promise is missed."""
    # What a run that was refused has left is taken; anything else is refused before torch is loaded.
    if not resume and out.exists() and (not out.is_dir() or set(contents(out)) - {"profile.jsonl"}):
        raise OutputInUseError(
            f"--out {out} already holds something; add --resume to continue a run there, or choose another folder"
        )
    from halpiee.training.run import Run
    from halpiee.training.stages import execute

    again = f"the run is saved; `halpiee train --resume --out {shlex.quote(str(out))}` continues it"
    with kept_in(out / "settings.json", again):
        run = Run.open(settings, out, ScreenTalk(), resume=resume)
        try:
            report = execute(run)
        except WriteError as error:
            raise WriteError(f"{error}; {again}") from error

    def show() -> None:
        from halpiee.report import table

        screen().print(table(report))

    answer(report, as_json, show)
    promise = report["promise"]
    say(f"{promise['text']}; the page is {out / 'report.html'}, the network {out / 'pruned.onnx'}")
    if not promise["met"]:
        say("halpiee: the promise is missed; a quieter machine, or another --budget, may help")
        raise click.exceptions.Exit(MISSED)
