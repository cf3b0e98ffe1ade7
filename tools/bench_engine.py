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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency.backends.cuda import LIBRARIES
from latency.backends.tensorrt import TensorRT
from latency.backends.tensorrt.engine import EngineRunner
from latency.errors import HalpieeError, UsageError
from latency.timing.benchmark import Comparison, compare


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Opens and times the engines; returns their figures."""
    if given.rounds < 1 or (given.batch is not None and given.batch < 1):
        raise UsageError("--rounds and --batch are at least 1")
    names = [path.stem for path in given.files]
    if len(set(names)) < len(names):
        names = [str(path) for path in given.files]
    if len(set(names)) < len(names):
        raise UsageError("an engine was named twice; name every file once")
    backend = TensorRT(library=given.library, device=given.device)
    backend.graphs = not given.no_graph
    with ExitStack() as opened:
        runners = {
            name: opened.enter_context(backend.network(path, batch=given.batch, trust=given.trust_engine))
            for name, path in zip(names, given.files, strict=True)
        }
        found = compare(runners, backend=backend, rounds=given.rounds, seconds=given.seconds)
        rows = [_row(name, names[0], runner, found, given.layers) for name, runner in runners.items()]
        graph = all(runner.is_graph for runner in runners.values())
    facts = {"tensorrt": str(backend.trt.__version__), "library": backend.cuda.name, "graph": graph}
    return {**facts, **backend.facts, "engines": rows}


def _row(name: str, base: str, runner: EngineRunner, found: Comparison, layers: bool) -> dict[str, Any]:
    one, ratio = found[name], found.ratio(base, name)
    batch = next(b.shape[0] for b in runner.execution.bindings if b.is_input)
    return {
        "name": name,
        "batch": batch,
        **{key: getattr(one, key) for key in ("median_us", "iqr_us", "p90_us", "p99_us", "n")},
        "fps": batch * 1e6 / one.median_us,
        "speedup": ratio.median,
        "speedup_ci": [ratio.lo, ratio.hi],
        **({"layers_us": runner.execution.layers_us()} if layers else {}),
    }


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
