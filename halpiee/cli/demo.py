"""``halpiee demo``: the whole path on a small network, with no download and no GPU."""

from __future__ import annotations

from pathlib import Path

import click

from halpiee import ranges
from halpiee.cli.options import Ranged, examples, json_option
from halpiee.cli.output import free_folder
from halpiee.cli.train import carry_out

__all__ = ["command"]


@click.command("demo", epilog=examples("halpiee demo", "halpiee demo --out runs/first --json"))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run (default: runs/demo, runs/demo-2 …)."
)
@click.option(
    "--budget", default="0.5", show_default=True, help="Share of the dense latency, or a time such as 300us."
)
@click.option(
    "--seed", default=0, type=Ranged(ranges.Seed), show_default=True, help="Of every random choice."
)
@json_option
def command(out: Path | None, budget: str, seed: int, as_json: bool) -> None:
    """Profile, train dense and to half the latency, shrink, export, measure: under five minutes on two cores.

    A ResNet-20 of twice the usual width, on scikit-learn's handwritten digits at 16×16, through ONNX Runtime on
    this CPU.
    """
    from halpiee.training.settings import Settings

    settings = Settings(
        model="resnet20", width=2, data="digits", size=16, budget=budget, epochs=10, batch_size=64, seed=seed
    )
    carry_out(settings, out or free_folder(Path("runs/demo")), resume=False, as_json=as_json)
