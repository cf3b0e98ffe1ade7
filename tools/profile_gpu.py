"""Measure the ops of a network on this machine, without halpiee: torch alone is enough.

Where halpiee is installed, ``--model`` names a network and its ops are traced here. On a machine with nothing but
torch, take the ops from a file that ``halpiee explain MODEL --ops FILE`` wrote elsewhere:

    python tools/profile_gpu.py --ops resnet50.ops.json --precision fp16 --batch 32 --out h100-fp16-b32.jsonl

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
from latency.errors import HalpieeError, UsageError


def main(arguments: list[str] | None = None) -> int:
    """Measures, says how far it got, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a network's name; needs halpiee")
    source.add_argument("--ops", type=Path, help="a file of ops, one JSON object a line or a list of them")
    parser.add_argument("--size", type=int, default=224, help="image size, for --model")
    parser.add_argument("--backend", default="torch", choices=["torch", "onnxruntime"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "fp16", "bf16"])
    parser.add_argument("--channels-last", action="store_true", help="NHWC activations")
    parser.add_argument("--batch", type=int, help="images per call; default: as in the file, 1 for --model")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
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
    """Does what the arguments say."""
    if given.out is None and not given.dry_run:
        raise UsageError("no --out was given; name the profile file, or add --dry-run to measure nothing")
    if given.backend == "onnxruntime" and (given.precision != "fp32" or given.channels_last):
        raise UsageError(
            "ONNX Runtime is measured in fp32 and NCHW; leave --precision and --channels-last out"
        )
    ops = traced(given.model, given.size, given.batch or 1) if given.model else read(given.ops)
    if given.batch:
        ops = [replace(op, batch=given.batch) for op in ops]
    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(given.precision, "float32")
    layout = "nhwc" if given.channels_last else "nchw"
    ops = [replace(op, dtype=dtype, layout=layout) for op in ops]
    settings: dict[str, Any] = {}
    if given.backend == "torch":
        settings = {
            "device": given.device,
            "precision": given.precision,
            "channels_last": given.channels_last,
        }
    if given.dry_run:
        print(sweep(ops, backend=given.backend, threads=given.threads, settings=settings, dry_run=True))
        return 0
    profile = sweep(
        ops,
        backend=given.backend,
        threads=given.threads,
        settings=settings,
        path=given.out,
        progress=until(given.budget_minutes),
    )
    print(f"{len(profile.cells)} cells of {len({op.table_key() for op in ops})} tables in {given.out}")
    for left in profile.environment.get("not_measured", []):
        print(f"not measured: {left}", file=sys.stderr)
    return 0


def traced(model: str, size: int, batch: int) -> list[Op]:
    """Returns the ops of a network that halpiee knows."""
    try:
        import torch

        from halpiee import trace
        from halpiee.zoo.registry import build
    except ImportError as error:
        raise UsageError(
            f"--model {model} was asked for, and {error.name} is not installed; write the ops elsewhere with "
            f"`halpiee explain {model} --ops FILE` and give --ops FILE here"
        ) from None
    structure = trace(build(model).eval(), (torch.randn(batch, 3, size, size),))
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


def until(minutes: float | None) -> Any:
    """Returns a progress line on stderr that ends the sweep when its time is over."""
    begun = time.monotonic()
    said = 0.0

    def told(done: int, total: int) -> None:
        nonlocal said
        spent = time.monotonic() - begun
        if spent - said > 5 or done >= total:
            said = spent
            left = spent / done * (total - done) if done else float("nan")
            print(f"\r{done}/{total} cells, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
        if minutes is not None and spent > 60 * minutes and done < total:
            print(file=sys.stderr)
            raise KeyboardInterrupt

    return told


if __name__ == "__main__":
    sys.exit(main())
