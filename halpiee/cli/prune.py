"""``halpiee prune``: a trained network cut to a latency budget, its layers solved again, without training."""

from __future__ import annotations

from typing import Any

from halpiee.cli.options import verb
from halpiee.cli.train import Placed, carry_out, gather
from halpiee.training.config import Settings

__all__ = ["command"]

TAKEN = (
    "model weights data budget profile images rounds criterion protect_first width size backend batch threads device "
    "seed"
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
def command(asked: Placed, given: dict[str, Any]) -> None:
    """Cut trained MODEL to a latency and solve its layers again from unlabelled images: minutes, no training.

    Whole channels go where the latency is; each layer that stays is then fitted to what the trained network says
    (ridge regression). The folder is a run: `halpiee export`, `bench` and `report` take it.
    """
    settings = gather({**given, "method": "repair"}, asked.out, asked.resume)
    carry_out(settings, asked.out, resume=asked.resume, as_json=asked.as_json)
