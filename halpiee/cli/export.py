"""``halpiee export``: a finished run's network as ONNX, compared with PyTorch before it gets its name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from halpiee.cli.common import answer, examples, json_option, say
from halpiee.errors import OutputInUseError, UsageError

__all__ = ["command"]


@click.command(
    "export",
    epilog=examples(
        "halpiee export runs/demo --out small.onnx", "halpiee export runs/demo --dense --out dense.onnx"
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="onnx", show_default=True, type=click.Choice(["onnx"]))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write; never overwritten."
)
@click.option("--dense", is_flag=True, help="The dense network instead of the pruned one.")
@json_option
def command(run: Path, kind: str, out: Path, dense: bool, as_json: bool) -> None:
    """Write RUN's compact network as ONNX and prove that it computes what PyTorch computes."""
    if not (run / "report.json").is_file():
        raise UsageError(f"{run} holds no finished run; finish it with `halpiee train --resume --out {run}`")
    if out.exists():
        raise OutputInUseError(f"--out {out} exists; choose another name, nothing is overwritten")
    from halpiee.deploy.onnx import export_onnx
    from halpiee.training.run import Run
    from halpiee.training.settings import Settings

    settings = Settings.from_dict(json.loads((run / "settings.json").read_text()))
    from halpiee.cli.common import ScreenTalk

    opened = Run(settings, run, ScreenTalk())
    model = opened.dense() if dense else opened.compact()
    done = export_onnx(
        model, opened.example, out, metadata={"run": settings.digest, "budget": settings.budget}
    )
    answer(asdict(done), as_json, lambda: say(f"{out}: relative L2 to PyTorch {done.rel_l2:.1e}"))
