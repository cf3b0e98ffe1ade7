"""Measure the ops of a network on this machine, without halpiee: torch alone is enough, or TensorRT and PyCUDA alone.

Where halpiee is installed, ``--model`` names a network and its ops are traced here. On a machine with nothing but
torch, take the ops from a file that ``halpiee explain MODEL --ops FILE`` wrote elsewhere:

    python tools/profile_gpu.py --ops resnet50.ops.jsonl --precision fp16 --batch 32 --out h100-fp16-b32.jsonl

    python tools/profile_gpu.py --ops resnet50.ops.jsonl --backend tensorrt --precision fp16 --out h100-trt.jsonl

``--protocol halp`` measures what the papers' tables hold: fp32, NCHW, batch 256, cuDNN's own choice of algorithm, 100
repeats, every (C_in, C_out) at the group size. Several GPUs share one sweep when each process takes a shard and writes
a file of its own, which ``halpiee merge`` joins:

    CUDA_VISIBLE_DEVICES=0 python tools/profile_gpu.py --ops resnet50.ops.jsonl --shard 1/2 --out part1.jsonl
    CUDA_VISIBLE_DEVICES=1 python tools/profile_gpu.py --ops resnet50.ops.jsonl --shard 2/2 --out part2.jsonl

A run that was stopped, by hand or by ``--budget-minutes``, goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency import Op, sweep
from latency.backends import BACKENDS
from latency.backends.tensorrt import TensorRT
from latency.device import PRECISIONS
from latency.errors import HalpieeError, UsageError
from latency.timing.timer import Precision


def main(arguments: list[str] | None = None) -> int:
    """Measures, says how far it got, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a network's name; needs halpiee")
    source.add_argument("--ops", type=Path, help="a file of ops, one JSON object a line or a list of them")
    parser.add_argument("--size", type=int, help="image size, for --model (default 224)")
    parser.add_argument("--width", type=float, help="width multiplier of a zoo network, for --model")
    parser.add_argument("--classes", type=int, help="classes of the network, for --model, if not its own")
    parser.add_argument("--backend", default="torch", choices=["torch", "tensorrt", "onnxruntime"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "fp16", "bf16"])
    parser.add_argument("--channels-last", action="store_true", help="NHWC activations")
    parser.add_argument("--batch", type=int, help="images per call; default: as in the file, 1 for --model")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument(
        "--protocol", choices=["halp"], help="the papers' tables instead of few cells; torch only"
    )
    parser.add_argument(
        "--group-size", type=int, help="step of the whole grid, for --protocol halp (default 8)"
    )
    parser.add_argument("--shard", help="k/n: the k-th of n parts of the tables, for one of n GPUs")
    parser.add_argument("--builder-level", type=int, help="TensorRT's optimisation level (default 3)")
    parser.add_argument("--branches", type=int, help="ops in one build of TensorRT (default 1)")
    parser.add_argument(
        "--library", help="what opens the GPU for TensorRT: cuda-python, pycuda (default: either)"
    )
    parser.add_argument("--budget-minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--dry-run", action="store_true", help="say how many cells, and how long")
    parser.add_argument("--out", type=Path, help="the profile, JSON Lines")
    given = parser.parse_args(arguments)
    try:
        return measure(given)
    except HalpieeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def measure(given: argparse.Namespace) -> int:
    """Measures the ops that the arguments name."""
    if given.out is None and not given.dry_run:
        raise UsageError("no --out was given; name the profile file, or add --dry-run to measure nothing")
    names = ("device", "precision", "channels_last")
    settings: dict[str, Any] = {name: getattr(given, name) for name in names}
    BACKENDS[given.backend].check(**settings)
    built = (given.size, given.width, given.classes)
    if given.ops is not None and any(value is not None for value in built):
        raise UsageError(
            "--size, --width and --classes build the network of --model, and --ops FILE holds the ops of one built "
            "already; leave them out, or give --model"
        )
    halp = given.protocol == "halp"
    if halp and (given.backend != "torch" or given.precision != "fp32" or given.channels_last or given.batch):
        raise UsageError(
            "--protocol halp is torch in fp32, NCHW, batch 256; leave the options that say otherwise out"
        )
    if given.group_size is not None and (not halp or given.group_size < 1):
        raise UsageError(
            "--group-size is a number of channels for --protocol halp; leave it out, or give 1 or more"
        )
    if given.backend != "tensorrt" and (given.builder_level is not None or given.branches or given.library):
        raise UsageError("--builder-level, --branches and --library are of TensorRT; add --backend tensorrt")
    if halp:
        given.batch = 256
    ops = traced(given) if given.model else read(given.ops)
    if given.batch:
        ops = [replace(op, batch=given.batch) for op in ops]
    layout = "nhwc" if given.channels_last else "nchw"
    ops = [replace(op, dtype=PRECISIONS[given.precision], layout=layout) for op in ops]
    if given.shard is not None:
        ops = sharded(ops, given.shard)
    if given.backend == "tensorrt":
        own = {"level": given.builder_level, "branches": given.branches, "library": given.library}
        settings |= {name: value for name, value in own.items() if value is not None}
        settings |= TensorRT.kept_beside(given.out) if given.out else {}
    every = (given.group_size or 8) if halp else None
    repeats = Precision(relative=0.0, absolute_us=0.0, n_min=100, n_max=100) if halp else None
    if given.dry_run:
        if given.backend == "tensorrt":  # which is not needed to count cells
            given.backend, settings = "onnxruntime", {}
        print(sweep(ops, backend=given.backend, settings=settings, every=every, dry_run=True))
        return 0
    profile = sweep(
        ops,
        backend=given.backend,
        threads=given.threads,
        settings=settings,
        path=given.out,
        progress=until(given.budget_minutes),
        every=every,
        precision=repeats,
    )
    print(f"{len(profile.cells)} cells of {len({op.table_key() for op in ops})} tables in {given.out}")
    for left in profile.environment.get("not_measured", []):
        print(f"not measured: {left}", file=sys.stderr)
    return 0


def traced(given: argparse.Namespace) -> list[Op]:
    """Returns the ops of a network that halpiee knows, and says which others take time and are not among them."""
    try:
        import torch

        from halpiee import trace
        from halpiee.zoo.registry import build
    except ImportError as error:
        raise UsageError(
            f"--model {given.model} was asked for, and {error.name} is not installed; write the ops elsewhere with "
            f"`halpiee explain {given.model} --ops FILE` and give --ops FILE here"
        ) from None
    options = {"width": given.width, "num_classes": given.classes}
    network = build(given.model, **{key: value for key, value in options.items() if value is not None}).eval()
    size = given.size or 224
    structure = trace(network, (torch.randn(given.batch or 1, 3, size, size),))
    for name, number in structure.details["untimed"].items():
        print(f"not timed: {name} ×{number}; a plan leaves it out", file=sys.stderr)
    return [timed.op for timed in structure.ops]


def read(path: Path) -> list[Op]:
    """Reads ops: a list, an object with a list under ``ops``, or one object a line; keys as in a profile."""
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"--ops {path} cannot be read: {error.strerror}; check the path") from None
    try:
        try:
            content = json.loads(text)
        except ValueError:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        listed = content.get("ops", [content]) if isinstance(content, dict) else content
        return [Op.from_key(entry) for entry in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--ops {path} holds no ops ({error}); write it with `halpiee explain MODEL --ops FILE`"
        ) from None


def sharded(ops: list[Op], shard: str) -> list[Op]:
    """Returns the ops of the k-th of n parts, ``k/n``; the ops of one table stay together.

    Tables are dealt out by size, so that every process comes to the same parts without talking to the others.
    """
    try:
        part, parts = (int(number) for number in shard.split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise UsageError(f"--shard {shard} was given; give which part of how many, such as 1/4")
    work: dict[str, int] = {}
    for op in ops:
        work[op.table_key()] = max(op.macs, work.get(op.table_key(), 0))
    mine = set(sorted(work, key=lambda key: (-work[key], key))[part - 1 :: parts])
    kept = [op for op in ops if op.table_key() in mine]
    if not kept:
        raise UsageError(
            f"--shard {shard} has none of the {len(ops)} ops; use fewer parts, or leave this one out"
        )
    return kept


def until(minutes: float | None) -> Any:
    """Returns a progress line on stderr that ends the sweep when its time is over."""
    begun = time.monotonic()
    printed_s = 0.0

    def report(done: int, total: int) -> None:
        nonlocal printed_s
        spent = time.monotonic() - begun
        if spent - printed_s > 5 or done >= total:
            printed_s = spent
            left = spent / done * (total - done) if done else float("nan")
            print(f"\r{done}/{total} cells, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
        if minutes is not None and spent > 60 * minutes and done < total:
            print(file=sys.stderr)
            raise KeyboardInterrupt

    return report


if __name__ == "__main__":
    sys.exit(main())
