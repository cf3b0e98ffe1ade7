"""Time TensorRT engines on a target with TensorRT and PyCUDA (or cuda-python) alone: no PyTorch, no halpiee installed.

    python tools/bench_engine.py dense.engine pruned.engine --batch 32

Engines run in turns, so that drift of the clocks hits all alike; ratios are taken against the first. cuda-python times
replays of a CUDA graph, PyCUDA (which has no graphs) single launches, both between events. Engines are executable: only
those that halpiee built here are loaded, unless --trust-engine is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency.backends.cuda import LIBRARIES, EventClock, open_cuda
from latency.backends.tensorrt.builder import import_tensorrt
from latency.backends.tensorrt.network import open_engine
from latency.errors import HalpieeError, UsageError
from latency.timing.benchmark import compare


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Opens and times the engines; returns their figures."""
    if given.rounds < 1 or (given.batch is not None and given.batch < 1):
        raise UsageError("--rounds and --batch are at least 1")
    names = [path.stem for path in given.files]
    if len(set(names)) < len(names):
        names = [str(path) for path in given.files]
    if len(set(names)) < len(names):
        raise UsageError("an engine was named twice; name every file once")
    trt = import_tensorrt()
    cuda = open_cuda(given.library, given.device)
    runners = {
        n: open_engine(p, trt, cuda, batch=given.batch, trust=given.trust_engine)
        for n, p in zip(names, given.files, strict=True)
    }
    calls, graphs = {}, True
    for name, runner in runners.items():
        runner.enqueue()  # the first inference allocates, which a capture cannot
        cuda.synchronize()
        graph = None if given.no_graph else cuda.captured(runner.enqueue)
        graphs = graphs and graph is not None
        calls[name] = graph or runner.enqueue
    found = compare(calls, clock=EventClock(cuda), rounds=given.rounds, seconds=given.seconds)
    rows = []
    for name, runner in runners.items():
        one, batch = found[name], next(b.shape[0] for b in runner.bindings if b.is_input)
        ratio = found.ratio(names[0], name)
        row = {
            "name": name,
            "batch": batch,
            "median_us": one.median_us,
            "iqr_us": one.iqr_us,
            "p90_us": one.p90_us,
            "p99_us": one.p99_us,
            "n": one.n,
            "fps": batch * 1e6 / one.median_us,
            "speedup": ratio.median,
            "speedup_ci": [ratio.lo, ratio.hi],
        }
        if given.layers:
            row["layers_us"] = runner.layers_us()
        rows.append(row)
    facts = {"tensorrt": str(trt.__version__), "library": cuda.name, "graph": graphs, **cuda.facts()}
    return {**facts, "engines": rows}


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    how = "graph replays" if result["graph"] else "single launches"
    print(f"{result['device']}, TensorRT {result['tensorrt']}, {result['library']}, {how} between events")
    wide = max(len(row["name"]) for row in result["engines"])
    print(f"{'':{wide}}  batch  median µs     IQR     p99    n       FPS  speed-up  95 % interval")
    for row in result["engines"]:
        lo, hi = row["speedup_ci"]
        print(
            f"{row['name']:{wide}} {row['batch']:6d} {row['median_us']:10.1f} {row['iqr_us']:7.1f} "
            f"{row['p99_us']:7.0f} {row['n']:4d} {row['fps']:9.1f}  {row['speedup']:8.3f}  {lo:.3f} … {hi:.3f}"
        )
        for name, us in row.get("layers_us", {}).items():
            print(f"    {us:9.1f}  {name}")


def main(arguments: list[str] | None = None) -> int:
    """Times the engines named; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", nargs="+", type=Path, help="engines; ratios are taken against the first")
    parser.add_argument("--batch", type=int, help="images per inference; default: the engine's own, else 1")
    parser.add_argument("--rounds", type=int, default=100, help="interleaved rounds (default 100)")
    parser.add_argument("--seconds", type=float, default=60.0, help="fewer rounds, but nine, beyond this")
    parser.add_argument("--library", choices=LIBRARIES, default="auto", help="what opens the GPU")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--no-graph", action="store_true", help="single launches even where there are graphs")
    parser.add_argument("--layers", action="store_true", help="also TensorRT's own time of every layer")
    parser.add_argument(
        "--trust-engine", action="store_true", help="load engines that halpiee did not build here"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args(arguments)
    try:
        result = measured(given)
    except HalpieeError as error:
        print(f"bench_engine: {error}", file=sys.stderr)
        return error.exit_code
    if given.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
