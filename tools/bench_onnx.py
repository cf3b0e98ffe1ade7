"""Times ONNX files side by side on a device that has nothing but Python, ONNX Runtime and numpy.

This one file is all that has to be copied there. Networks run in turns, A B B A …, after a warm-up that ends when three
runs in a row agree; one thread on the CPU is timed by its own CPU time, anything else by the wall clock. Said are
median, quartiles, percentiles, images per second, and each network's ratio to the first with its distribution-free
95 % interval over the rounds::

    python bench_onnx.py dense.onnx pruned.onnx
    python bench_onnx.py dense.onnx pruned.onnx --batch 8 --threads 4 --json
    python bench_onnx.py pruned.onnx --provider cuda
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

BLOCK, LONGEST, GAIN, RUNS = 4, 40, 1.01, 8
"""A turn: blocks of untimed runs until the fastest gains less than this, for the others have driven a network's data
out of the caches; then so many runs that count."""


class RefusedError(Exception):
    """What was asked cannot be done; the message says what to type next."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def session(path: Path, threads: int, provider: str) -> Any:
    """Opens a file, all optimisations on."""
    import onnxruntime as ort

    if not path.is_file():
        raise RefusedError(f"{path} was asked for, and there is no such file; check the path")
    there = ort.get_available_providers()
    if PROVIDERS[provider] not in there:
        raise RefusedError(
            f"--provider {provider} was asked, and this installation has {', '.join(there)}; "
            "install the onnxruntime package of that provider, or use --provider cpu",
            3,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    wanted = [PROVIDERS[provider], *([] if provider == "cpu" else ["CPUExecutionProvider"])]
    try:
        return ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # its exceptions share no base class
        raise RefusedError(
            f"{path} was to be run and ONNX Runtime refused: {str(error).splitlines()[0][:300]}; "
            "copy or export the file again"
        ) from error


def feeds(runtime: Any, path: Path, batch: int, size: Sequence[int] | None) -> dict[str, Any]:
    """Returns random inputs, every open dimension filled."""
    rng = np.random.default_rng(0)
    found = {}
    for value in runtime.get_inputs():
        dims = list(value.shape)
        if dims and isinstance(dims[0], int) and dims[0] != batch:
            raise RefusedError(f"--batch {batch} was asked, and {path} takes batch {dims[0]} only; use that")
        shape = [batch, *(size if size is not None and len(size) == len(dims) - 1 else dims[1:])]
        unknown = [str(d) for d in shape if not isinstance(d, int)]
        if unknown:
            raise RefusedError(
                f"{path} leaves {', '.join(unknown)} open; give them with --size, such as 3x224x224"
            )
        kind = value.type.removeprefix("tensor(").rstrip(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        numbers = rng.standard_normal(shape)
        found[value.name] = numbers.astype(dtype) if "float" in dtype else np.zeros(shape, dtype=dtype)
    return found


def timed_us(call: Callable[[], object], cpu: bool) -> float:
    """Runs once; returns µs of this thread's CPU time, or of wall time."""
    clock = time.thread_time_ns if cpu else time.perf_counter_ns
    begun = clock()
    call()
    return (clock() - begun) / 1e3


def warm(call: Callable[[], object], cpu: bool) -> None:
    """Runs until three runs in a row agree within 5 %: five runs at least, two seconds at most."""
    end, seen = time.perf_counter() + 2.0, list[float]()
    while len(seen) < 5 or (max(seen[-3:]) > 1.05 * min(seen[-3:]) and time.perf_counter() < end):
        seen.append(timed_us(call, cpu))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and its distribution-free 95 % interval, of order statistics."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    n, j, tail = len(x), 0, 0.5 ** len(x)
    while j < n // 2 and tail <= 0.025:
        j += 1
        tail += math.comb(n, j) * 0.5**n
    j = max(j, 1)
    return float(np.median(x)), float(x[j - 1]), float(x[n - j])


def in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, seconds: float, cpu: bool
) -> dict[str, list[float]]:
    """Returns µs of every round, by name."""
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        warm(call, cpu)
    end, done, names = time.perf_counter() + seconds, 0, list(calls)
    while done < min(9, rounds) or (done < rounds and time.perf_counter() < end):
        count = min(RUNS, rounds - done)
        for name in names if done // RUNS % 2 == 0 else reversed(names):
            if len(names) > 1:
                until_back(calls[name], cpu)
            runs[name] += [timed_us(calls[name], cpu) for _ in range(count)]
        done += count
    return runs


def until_back(call: Callable[[], object], cpu: bool) -> None:
    """Runs until the fastest of four runs is not faster than that of the four before by one per cent."""
    before = math.inf
    for _ in range(LONGEST // BLOCK):
        fastest = min(timed_us(call, cpu) for _ in range(BLOCK))
        if before <= GAIN * fastest:
            break
        before = min(before, fastest)


def summary(runs: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """Returns a row per network, the first being what ratios are taken against."""
    base = next(iter(runs))
    rows = []
    for name, us in runs.items():
        quartiles = np.percentile(us, [25, 75])
        p50, p90, p99 = (float(p) for p in np.percentile(us, [50, 90, 99]))
        ratio, lo, hi = interval(np.asarray(runs[base]) / np.asarray(us))
        rows.append(
            {
                "name": name,
                "batch": batch,
                "median_us": p50,
                "iqr_us": float(quartiles[1] - quartiles[0]),
                "p50_us": p50,
                "p90_us": p90,
                "p99_us": p99,
                "n": len(us),
                "fps": batch * 1e6 / p50,
                "speedup": ratio,
                "speedup_ci": [lo, hi],
                "difference_shown": name != base and (lo > 1 or hi < 1),
            }
        )
    return rows


def device() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return named[0] if named else platform.processor() or platform.machine()


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Opens and times the files; returns their figures."""
    import onnxruntime as ort

    size = None
    if arguments.size is not None:
        try:
            size = [int(part) for part in arguments.size.split("x")]
        except ValueError as error:
            raise RefusedError(
                f"--size {arguments.size} is no size; give channels and positions: 3x224x224"
            ) from error
    if min(arguments.batch, arguments.threads, arguments.rounds) < 1:
        raise RefusedError("--batch, --threads and --rounds are at least 1")
    paths = [Path(text) for text in arguments.files]
    names = [p.stem for p in paths] if len({p.stem for p in paths}) == len(paths) else arguments.files
    if len(set(names)) < len(names):
        raise RefusedError("a file was named twice; name every file once")
    calls: dict[str, Callable[[], object]] = {}
    facts = {}
    for name, path in zip(names, paths, strict=True):
        runtime = session(path, arguments.threads, arguments.provider)
        inputs = feeds(runtime, path, arguments.batch, size)

        def call(runtime: Any = runtime, inputs: dict[str, Any] = inputs) -> object:
            return runtime.run(None, inputs)

        try:
            call()
        except Exception as error:  # its exceptions share no base class
            raise RefusedError(
                f"{path} was to be run on batch {arguments.batch} and ONNX Runtime refused: "
                f"{str(error).splitlines()[0][:300]}; give the size it takes with --size"
            ) from error
        calls[name], facts[name] = call, dict(runtime.get_modelmeta().custom_metadata_map)
    cpu = arguments.provider == "cpu" and arguments.threads == 1
    rows = summary(in_turns(calls, arguments.rounds, arguments.seconds, cpu), arguments.batch)
    for row in rows:
        row["metadata"] = facts[row["name"]]
    return {
        "device": device(),
        "cores": os.cpu_count(),
        "onnxruntime": ort.__version__,
        "provider": arguments.provider,
        "threads": arguments.threads,
        "clock": "cpu" if cpu else "wall",
        "files": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    clock = "CPU time of one thread" if result["clock"] == "cpu" else "wall time"
    print(f"{result['device']}, ONNX Runtime {result['onnxruntime']}, {result['threads']} thread(s), {clock}")
    wide = max(len(row["name"]) for row in result["files"])
    print(f"{'':{wide}}  median µs     IQR     p90     p99    n      FPS  speed-up  95 % interval")
    for i, row in enumerate(result["files"]):
        lo, hi = row["speedup_ci"]
        unsure = "" if i == 0 or row["difference_shown"] else "  no difference shown"
        print(
            f"{row['name']:{wide}} {row['median_us']:10.1f} {row['iqr_us']:7.1f} {row['p90_us']:7.0f} "
            f"{row['p99_us']:7.0f} {row['n']:4d} {row['fps']:8.1f}  {row['speedup']:8.3f}  {lo:.3f} … {hi:.3f}{unsure}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Times the files named; returns the exit code: 0, 2 what was asked cannot be done, 3 something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="ONNX files; ratios are taken against the first")
    parser.add_argument("--batch", type=int, default=1, help="images per inference (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default 1)")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--seconds", type=float, default=120.0, help="fewer rounds, but nine, beyond this")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--size", help="input size where a file leaves it open: 3x224x224")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    try:
        result = measured(arguments)
    except ImportError as error:
        print(f"bench_onnx: {error}; install it with `pip install onnxruntime numpy`", file=sys.stderr)
        return 3
    except RefusedError as refused:
        print(f"bench_onnx: {refused}", file=sys.stderr)
        return refused.code
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
