"""``halpiee prune``: a trained network cut to a latency budget, its layers solved again, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halpiee.cli.options import examples, json_option
from halpiee.cli.train import carry_out, gather, number

__all__ = ["command"]


@click.command(
    "prune",
    epilog=examples(
        "halpiee prune resnet20 --data digits --size 16 --weights runs/digits/dense.safetensors --budget 0.5 "
        "--out runs/half",
        "halpiee prune resnet50 --data path/to/imagenet --size 224 --weights resnet50.safetensors "
        "--profile resnet50.jsonl --budget 12.5ms --out runs/resnet50",
    ),
)
@click.argument("model", required=False)
@click.option("--weights", type=click.Path(), help="Trained weights of MODEL, safetensors.")
@click.option(
    "--data", help="Parquet folder, ImageFolder tree, cifar10, cifar100, digits, or package.module:function."
)
@click.option("--budget", help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; never overwritten.")
@click.option("--profile", help="A profile measured before; otherwise one is measured into the folder.")
@click.option("--resume", is_flag=True, help="Continue what was interrupted in --out.")
@click.option("--images", type=number("images"), help="Training images; no labels are read.  [default: 512]")
@click.option("--rounds", type=number("rounds"), help="Cut, repair, score again so often.  [default: 4]")
@click.option("--criterion", help="Whose scores choose: taylor, l2, magnitude …  [default: taylor]")
@click.option(
    "--protect-first/--no-protect-first",
    default=None,
    help="Leave the first layer whole.  [default: resnet50 and mobilenet_v1, as in the papers]",
)
@click.option("--width", type=number("width"), help="Width multiplier of a zoo network.")
@click.option(
    "--size", type=number("size"), help="Pixels of a side to bring the images to.  [default: as is]"
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "torch"]),
    help="Runtime that is profiled and timed; --profile says its own.  [default: onnxruntime]",
)
@click.option("--batch", type=number("batch"), help="Images per inference.  [default: 1]")
@click.option("--threads", type=number("threads"), help="Threads of the runtime.  [default: 1]")
@click.option("--device", help="Where layers are solved: auto, cpu, cuda.  [default: auto]")
@click.option("--seed", type=number("seed"), help="Of every random choice.  [default: 0]")
@json_option
def command(out: Path, resume: bool, as_json: bool, **options: Any) -> None:
    """Cut trained MODEL to a latency and solve its layers again from unlabelled images: minutes, no training.

    Whole channels go where the latency is; each layer that stays is then fitted to what the trained network says
    (ridge regression). The folder is a run: `halpiee export`, `bench` and `report` take it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    settings = gather({**given, "method": "repair"}, out, resume)
    carry_out(settings, out, resume=resume, as_json=as_json)
