"""``halpiee demo``: the whole path on a small network, with no download and no GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import free_folder
from halpiee.cli.report import write_site
from halpiee.cli.train import MISSED, finished, show
from halpiee.options import option
from halpiee.shared_options import Seeded
from halpiee.training.config import Settings


@dataclass(frozen=True, kw_only=True)
class Demo(Seeded, Answered):
    """Where the demonstration goes."""

    out: Path | None = option(None, "Folder of the run.", unset="runs/demo, runs/demo-2 …")
    budget: str = option("0.5", "Share of the dense latency, or a time such as 300us.")


@verb("demo", Demo, examples=("halpiee demo", "halpiee demo --out runs/first --json"))
def command(given: Demo) -> None:
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
