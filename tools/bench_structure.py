"""How long tracing and shrinking take: median of a few runs, in seconds, construction excluded.

Two limits are what users wait for: a ResNet-50 within 1 s, the largest network within 10 s, both at 224 × 224::

    python -m tools.bench_structure
    python -m tools.bench_structure resnet50 maxvit_t --runs 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings

import torch

from halpiee.structure import shrink, trace
from tools.models_table import build, example_inputs, random_keep
from tools.results import append, markdown, recorded

NETWORKS = ("resnet50", "mobilenet_v2", "densenet121", "vit_b_16", "swin_t", "maxvit_t", "mvit_v2_s")


def measured(name: str, runs: int) -> tuple[float, float]:
    """Returns the median seconds of a trace and of a shrink at 224 × 224 (video: its own size)."""
    model = build(name)
    inputs = example_inputs(name)
    if inputs[0].dim() == 4:
        inputs = (torch.randn(1, 3, 224, 224),)
    traces, cuts = [], []
    for run in range(runs + 1):
        start = time.perf_counter()
        structure = trace(model, inputs)
        middle = time.perf_counter()
        shrink(model, structure, random_keep(structure, run))
        if run:  # the first one pays for imports
            traces.append(middle - start)
            cuts.append(time.perf_counter() - middle)
    return statistics.median(traces), statistics.median(cuts)


def main() -> int:
    """Prints a line per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NETWORKS, help="torchvision networks")
    parser.add_argument("--runs", type=int, default=3, help="runs that count")
    recorded(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in arguments.names:
        trace_s, shrink_s = measured(name, arguments.runs)
        rows.append({"network": name, "trace s": round(trace_s, 2), "shrink s": round(shrink_s, 2)})
        print(markdown(rows[-1:]), flush=True)
    if not arguments.no_record:
        append("structure", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
