"""Traces, cuts and checks a small network of every family of timm and writes the table of ``docs/models_timm.md``.

They are networks that this project was not written for. timm is no dependency; install it beside the project::

    pip install timm
    python -m tools.timm_table --out docs/models_timm.md
    python -m tools.timm_table hiera_tiny_224
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from tools.growing_table import GrowingTable
from tools.models_table import COLUMNS, MEMORY_LIMIT_BYTES, row, text, uneven

try:
    import timm
except ImportError:
    sys.exit("the table of timm's networks needs timm, which is not installed; type: pip install timm")

SIZES = (64, 96, 128)
"""Images that are tried, in pixels, before a network's own size."""

SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "_xs",
    "tiny",
    "_t",
    "mini",
    "small",
    "_s",
    "050",
    "18",
    "b0",
    "b1",
)
"""What names of small networks hold, the smallest first."""

TIME_LIMIT_S = 600

BY = f"""Written by `python -m tools.timm_table --out docs/models_timm.md`, timm {timm.__version__}: one small network
of every module of timm, random weights, the smallest image of {SIZES} pixels or its own that runs.
"""


def size_of(name: str) -> tuple[int, int]:
    """Returns what orders the networks of a family, small ones first."""
    return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)), len(name)


def names() -> list[str]:
    """Returns one network of every module of timm."""
    families = (timm.list_models(module=module) for module in timm.list_modules())
    return sorted(min(family, key=size_of) for family in families if family)


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Builds a network with random weights and the smallest image that it takes."""
    torch.manual_seed(0)
    model = uneven(timm.create_model(name, pretrained=False).eval())
    settings: Any = model.default_cfg
    channels, own, _ = settings["input_size"]
    for size in (own,) if settings.get("fixed_input_size") else (*SIZES, own):
        x = torch.randn(1, channels, size, size)
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, AssertionError, ValueError):
            continue
        return model, (x,)
    raise ValueError(f"{name} runs on no image of {channels} channels and {SIZES} or {own} pixels")


def cells(name: str) -> str:
    """Returns the row of one network."""
    model, inputs = build(name)
    return row(name, model, inputs, double=True).cells()


TABLE = GrowingTable(
    module="tools.timm_table",
    about=str(__doc__),
    names=names(),
    cells=cells,
    text=lambda rows: text(rows, BY + COLUMNS),
    columns=8,
    seconds=TIME_LIMIT_S,
    memory_bytes=MEMORY_LIMIT_BYTES,
)


if __name__ == "__main__":
    sys.exit(TABLE.main())
