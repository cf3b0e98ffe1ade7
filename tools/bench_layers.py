"""Is each table right? Kernels of whole networks, as ONNX Runtime's profiler times them, beside what tables say.

A sum may be right by errors that cancel. Here the convolutions and linear layers of the dense network and of random
shrunk ones stand beside their tables, by table. The profiler counts whole µs of the wall clock, some 3 of them its own
at each kernel, which are taken off.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import latency
from halpiee.deploy.calibrate import first_units, layer_times, random_counts
from halpiee.selection.cost import LatencyCost
from halpiee.structure.shrink import shrink
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.backends.onnxruntime import to_onnx
from latency.op import in_words

OWN_US = 3.0
"""Of each kernel's time, the profiler's: what it says of one that reads a single number."""


def main() -> None:
    """Prints a line per table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="image size")
    parser.add_argument("--batch", type=int, default=8, help="images per inference")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=5, help="random shrunk networks")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build(given.model).eval()
    example = (torch.randn(given.batch, 3, given.size, given.size),)
    structure = trace(model, example)
    profile = latency.Profile.load(given.profile)
    drawn = random_counts(LatencyCost(structure, profile), given.networks, seed=3)
    nets = {"dense": model} | {
        str(i): shrink(model, structure, first_units(structure, counts)) for i, counts in enumerate(drawn)
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in nets}
        for name, net in nets.items():
            paths[name].write_bytes(to_onnx(net, example).SerializeToString())
        found = layer_times(paths, batch=given.batch)
    told: dict[str, dict[bool, tuple[float, float]]] = defaultdict(dict)
    for name, net in nets.items():
        built = {timed.layer: timed.op for timed in trace(net, example).ops}
        for timed in structure.ops:
            if timed.layer not in found[name] or timed.layer not in built:
                continue
            op = built[timed.layer]
            kernel, table = told[in_words(timed.op)].get(name == "dense", (0.0, 0.0))
            us = float(profile.table(timed.op).lookup(op.c_in, op.c_out))
            told[in_words(timed.op)][name == "dense"] = kernel + found[name][timed.layer] - OWN_US, table + us
    print(f"{'':58} dense: kernels   table  ratio  cut: kernels   table  ratio")
    for words, sides in told.items():
        columns = [sides.get(dense, (0.0, 0.0)) for dense in (True, False)]
        print(f"{words:58}" + "".join(f" {k:14.0f} {t:7.0f} {k / t if t else 0:6.3f}" for k, t in columns))


if __name__ == "__main__":
    main()
