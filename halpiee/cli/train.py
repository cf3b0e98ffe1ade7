"""``halpiee train``: a network trained to a latency budget, in a folder that resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halpiee.cli.common import ScreenTalk, answer, examples, json_option, say
from halpiee.errors import OutputInUseError, UsageError

if TYPE_CHECKING:
    from halpiee.training.settings import Settings

__all__ = ["carry_out", "command"]

MISSED = 4


@click.command(
    "train",
    epilog=examples(
        "halpiee train resnet20 --data digits --size 16 --budget 0.5 --epochs 4 --out runs/digits",
        "halpiee train resnet20 --data path/to/cifar10 --budget 0.5 --epochs 60 --batch-size 128 --out runs/cifar",
        "halpiee train resnet20 --data digits --size 16 --method rigl --sparsity 0.9 --epochs 4 --out runs/rigl",
        "halpiee train resnet20 --data digits --size 16 --method filter --criterion l1 --rounds 5 --sparsity 0.65 "
        "--out runs/filter",
        "halpiee train --resume --out runs/cifar",
    ),
)
@click.argument("model", required=False)
@click.option(
    "--data", help="Parquet folder, ImageFolder tree, cifar10, cifar100, digits, or package.module:function."
)
@click.option("--budget", help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).")
@click.option(
    "--sparsity", type=float, help="Share of weights or filters to remove (0.9); instead of --budget."
)
@click.option(
    "--distribution",
    type=click.Choice(["uniform", "erk", "global", "nm"]),
    help="How a sparsity is spread over layers.  [default: the paper's]",
)
@click.option("--nm", help="Pattern of --distribution nm: N of M input weights stay.  [default: 2:4]")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; never overwritten."
)
@click.option("--method", help="How the budget is met; `halpiee methods` lists them.  [default: iee]")
@click.option("--criterion", help="Whose scores choose (filter, snip …): magnitude, l1, taylor, grasp …")
@click.option("--rounds", type=int, help="Rounds of pruning, survivors scored again (filter: 1, 5, 25).")
@click.option("--regrow", is_flag=False, flag_value=0.3, type=float, help="Exchange this share of filters.")
@click.option("--interval", type=int, help="Steps between two mask updates.  [default: the paper's, or less]")
@click.option("--fraction", type=float, help="Share exchanged by the first update (SET, RigL, SNFS).")
@click.option("--initial", type=float, help="Sparsity that GraNet starts from.  [default: 0]")
@click.option("--at", type=int, help="Steps before one-shot pruning.  [default: 0]")
@click.option(
    "--init", type=click.Choice(["random", "magnitude"]), help="First weights of static, SET, RigL."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Settings from a TOML or JSON file.")
@click.option("--weights", type=click.Path(), help="Start from these safetensors weights.")
@click.option("--width", type=float, help="Width multiplier of a zoo network.")
@click.option("--size", type=int, help="Image size to bring the data to.")
@click.option("--epochs", type=int, help="Of the dense and the pruned network alike.  [default: 20]")
@click.option("--batch-size", type=int, help="Images per training step.  [default: 64]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 0.1]")
@click.option("--weight-decay", type=float, help="On weights, not on norms and biases.  [default: 0.0005]")
@click.option("--label-smoothing", type=float, help="Of the cross-entropy.  [default: 0]")
@click.option("--baseline/--no-baseline", default=None, help="Train a dense network beside.  [default: yes]")
@click.option("--profile", help="A profile measured before; otherwise one is measured into the run's folder.")
@click.option("--batch", type=int, help="Images per inference.  [default: 1]")
@click.option("--threads", type=int, help="Threads of the runtime.  [default: 1]")
@click.option("--cycles", type=int, help="Prune-and-grow cycles.  [default: 8]")
@click.option("--h", type=int, help="Steps before a prune; with --j and --q instead of --cycles.")
@click.option("--j", type=int, help="Steps between prune and exploring.")
@click.option("--q", type=int, help="Steps of exploring.")
@click.option("--omega", type=float, help="Share of the budget exchanged in the first cycle.  [default: 0.3]")
@click.option(
    "--end", type=float, help="Share of the training after which updates have ended.  [default: 0.75]"
)
@click.option("--solver", type=click.Choice(["joint", "cpsat", "linear"]), help="[default: joint]")
@click.option("--device", help="Where to train: auto, cpu, cuda.  [default: auto]")
@click.option("--seed", type=int, help="Of every random choice.  [default: 0]")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@json_option
def command(model: str | None, out: Path, resume: bool, as_json: bool, **options: Any) -> None:
    """Train MODEL to a latency: profile, dense baseline, IEE to the budget, shrink, export, measure.

    With --sparsity instead of --budget, train to a share of weights or filters, by any of `halpiee methods`.

    MODEL is a zoo, torchvision or timm name, or package.module:function. Interrupted, the run is saved and
    continues with --resume; on a CPU it ends bit-equal to one that was never interrupted.
    """
    recipe = options.pop("recipe")
    given = {key: value for key, value in options.items() if value is not None}
    if recipe is not None:
        given = {**read_recipe(recipe), **given}
    if model is not None:
        given["model"] = model
    carry_out(gather(given, out, resume), out, resume=resume, as_json=as_json)


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the options of a TOML or JSON file: one table, keys as the options, hyphens or underscores.

    Raises:
        UsageError: a file that is not there or cannot be read as such, or an option that ``train`` does not have.
    """
    import tomllib

    if not path.is_file():
        raise UsageError(
            f"--recipe {path} was asked for, and there is no such file; give a TOML or JSON file"
        )
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--recipe {path} is neither TOML nor JSON: {error}; write one `option = value` a line"
        ) from error
    known = {p.name for p in command.params} | {"model"}
    found = {key.replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(set(found) - known)
    if unknown:
        raise UsageError(
            f"--recipe {path} holds {unknown[0]!r}, which is no option of `halpiee train`; see `halpiee train --help`"
        )
    return found


def gather(given: dict[str, Any], out: Path, resume: bool) -> Settings:
    """Returns the settings of the options that were given, over those of the run that is resumed."""
    from halpiee.training.settings import Settings

    values: dict[str, Any] = {}
    stored = out / "settings.json"
    if resume and stored.is_file():
        values = json.loads(stored.read_text())
    elif resume:
        raise UsageError(f"--resume was asked, but {out} holds no run; leave --resume out to start one")
    cycle_keys = {"cycles", "h", "j", "q", "omega", "end", "solver"}
    mask_keys = {
        "sparsity",
        "distribution",
        "nm",
        "criterion",
        "rounds",
        "regrow",
        "interval",
        "fraction",
        "initial",
        "at",
        "init",
    }
    cycle = {**values.get("cycle", {}), **{k: v for k, v in given.items() if k in cycle_keys}}
    masks = {**values.get("masks", {}), **{k: v for k, v in given.items() if k in mask_keys}}
    plain = {k: v for k, v in given.items() if k not in cycle_keys | mask_keys}
    values = {**values, **plain, "cycle": cycle, "masks": masks}
    limited = masks.get("sparsity") is not None or masks.get("distribution") == "nm"
    needed = ("model", "data") if limited else ("model", "data", "budget")
    missing = [f"--{key}" if key != "model" else "MODEL" for key in needed if values.get(key) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing; see `halpiee train --help` for examples")
    return Settings.from_dict(values)


def carry_out(settings: Settings, out: Path, *, resume: bool, as_json: bool) -> None:
    """Runs the settings in the folder, prints the table, exits 4 when the promise is missed."""
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputInUseError(
            f"--out {out} already holds something; add --resume to continue a run there, or choose another folder"
        )
    from halpiee.training.run import Run
    from halpiee.training.stages import execute

    run = Run.open(settings, out, ScreenTalk(), resume=resume)
    report = execute(run)

    def show() -> None:
        from rich.console import Console

        from halpiee.report import table

        Console().print(table(report))

    answer(report, as_json, show)
    promise = report["promise"]
    say(f"{promise['text']}; the page is {out / 'report.html'}, the network {out / 'pruned.onnx'}")
    if not promise["met"]:
        say("halpiee: the promise is missed; a quieter machine, or another --budget, may help")
        raise click.exceptions.Exit(MISSED)
