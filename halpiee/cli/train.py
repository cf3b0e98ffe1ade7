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
        "halpiee train --resume --out runs/cifar",
    ),
)
@click.argument("model", required=False)
@click.option(
    "--data", help="Parquet folder, ImageFolder tree, cifar10, cifar100, digits, or package.module:function."
)
@click.option("--budget", help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; never overwritten."
)
@click.option("--method", type=click.Choice(["iee"]), help="How the budget is met.  [default: iee]")
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

    MODEL is a zoo, torchvision or timm name, or package.module:function. Interrupted, the run is saved and
    continues with --resume; on a CPU it ends bit-equal to one that was never interrupted.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if model is not None:
        given["model"] = model
    carry_out(gather(given, out, resume), out, resume=resume, as_json=as_json)


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
    cycle = {**values.get("cycle", {}), **{k: v for k, v in given.items() if k in cycle_keys}}
    values = {**values, **{k: v for k, v in given.items() if k not in cycle_keys}, "cycle": cycle}
    missing = [
        f"--{key}" if key != "model" else "MODEL" for key in ("model", "data", "budget") if key not in values
    ]
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

    run = Run.open(settings, out, ScreenTalk(), resume=resume)
    report = run.execute()

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
