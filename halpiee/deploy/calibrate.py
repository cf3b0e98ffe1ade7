"""Measures whole networks: the fit before training, the closed loop after it, and the time of every layer.

A sum of layers is not a network: ``e2e = a + b·Σ`` is fitted on a few random shrunk networks, measured beside the
dense one (``latency.fit``). A selection is measured as well, and solved again where it misses the budget.

Times of layers come from ONNX Runtime's own profiler, which slows a network of 0.4 ms by about 18 %.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from halpiee.deploy.target import Target
from halpiee.errors import UsageError
from halpiee.methods.allocator import LatencyPool
from halpiee.methods.method import Method
from halpiee.selection.cost import Also, LatencyCost
from halpiee.structure.shrink import keep_first, shrink
from latency.backends.onnxruntime.network import feeds, session
from latency.predict import Calibration, fit
from latency.timing.benchmark import Comparison


@dataclass(frozen=True)
class Round:
    """One turn of the closed loop, in µs on the scale of the calibration's dense latency."""

    round: int  # from 1
    predicted_us: float  # the selection's latency before it was measured
    measured_us: float  # its latency beside the dense network's
    lower_us: float  # the budget minus one step of the selection, at least 1.5 %
    upper_us: float  # 1.02 times the budget
    factor: float  # measured over predicted


def random_counts(cost: LatencyCost, n: int, seed: int) -> list[dict[str, int]]:
    """Returns ``n`` networks of random candidate widths, spread from narrow to wide."""
    generator = np.random.default_rng(seed)
    networks = []
    for share in np.linspace(0.3, 0.9, n):
        counts = {}
        for name, candidates in cost.candidates.items():
            allowed = np.array([k for k in candidates if k > 0])
            wanted = allowed[-1] * np.clip(share + generator.uniform(-0.3, 0.3), 0, 1)
            counts[name] = int(allowed[np.abs(allowed - wanted).argmin()])
        networks.append(counts)
    return networks


def calibrate(
    model: nn.Module,
    cost: LatencyCost,
    example_inputs: tuple[Any, ...],
    *,
    networks: int = 4,
    target: Target | None = None,
    rounds: int = 20,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Returns the fit of summed tables to whole networks on this machine.

    Args:
        model: the dense network; its weights do not matter.
        cost: uncalibrated.
        example_inputs: at the profile's batch size.
        networks: random shrunk networks to measure beside the dense one.
        target: what they are timed on, as the profile was; by default ONNX Runtime with one thread.
        rounds: interleaved rounds.
        seed: of the networks' widths.
        progress: told what is being done.
    """
    structure, target = cost.structure, target or Target()
    drawn = random_counts(cost, networks, seed)
    progress(f"making the dense network and {networks} random shrunk ones ready")
    small = (shrink(model, structure, keep_first(structure, counts)) for counts in drawn)
    ready = {"dense": target.ready(model, example_inputs)}
    ready |= {f"net{i}": target.ready(one, example_inputs) for i, one in enumerate(small)}
    progress("measuring them side by side")
    found = timed(target, ready, example_inputs, rounds=rounds, progress=progress)
    dense_us = found["dense"].median_us
    points = [(cost.raw(counts), found[f"net{i}"].median_us) for i, counts in enumerate(drawn)]
    return fit(points, anchor=(cost.raw({}), dense_us))


TURNS, TRIES, CERTAIN = 5, 3, 0.015
"""Candidates of a closed loop; measurements of each until the 95 % interval of the ratio is ± this share."""


def timed(
    target: Target,
    networks: Mapping[str, Any],
    example_inputs: tuple[Any, ...],
    *,
    rounds: int,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Times networks in turns, again on a noisy machine until ``seconds`` are over; the surest ratios count (0186)."""
    tried: list[tuple[float, Comparison]] = []
    end = time.monotonic() + seconds
    while not tried or (len(tried) < TRIES and tried[-1][0] > CERTAIN and time.monotonic() < end):
        if tried:
            progress(f"the ratio is only known to ±{tried[-1][0]:.1%}; measuring again")
        found = target.compare(networks, example_inputs, rounds=rounds * (len(tried) + 1))
        ratios = [found.ratio(next(iter(networks)), name) for name in list(networks)[1:]]
        half = max(((one.hi - one.lo) / (2 * one.median) for one in ratios), default=0.0)
        tried.append((half, found))
    return min(tried, key=lambda one: one[0])[1]


class Candidate(Protocol):
    """A selection that can be measured, replaced by another solve, and taken back."""

    @property
    def counts(self) -> dict[str, int]:
        """Units per group."""

    @property
    def keep(self) -> Mapping[str, torch.Tensor]:
        """Which units stay."""

    @property
    def next_step_us(self) -> float:
        """Smallest extra cost of any next allowed size; NaN when everything is active."""

    def solve_again(self, cost: LatencyCost) -> None:
        """Replaces the selection under a corrected cost."""

    def go_back(self, turn: int) -> None:
        """Takes the selection of an earlier turn (from 0) again."""


def close_loop(
    model: nn.Module,
    cost: LatencyCost,
    example_inputs: tuple[Any, ...],
    candidate: Candidate,
    *,
    budget_us: float,
    target: Target | None = None,
    rounds: int = 20,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[LatencyCost, list[Round]]:
    """Measures the selection and solves again under a corrected line until it meets the budget.

    The corrected line is fitted to all candidates measured so far and ends in the dense network: one noisy measurement
    does not tip it. If no turn meets the budget, the candidate closest below its upper limit is taken.

    Limits of the cost that can be timed here (``Also.measure``) are measured with every turn and corrected the same
    way; a turn that exceeds one is not accepted.

    Args:
        model: dense-shaped, with its current weights.
        cost: calibrated.
        example_inputs: at the profile's batch size.
        candidate: the selection.
        budget_us: Ψ on the scale of ``cost.dense_us``.
        target: as for ``calibrate``.
        rounds: interleaved rounds of each measurement.
        progress: told where a measurement is too noisy.

    Returns:
        The cost that the accepted candidate was solved under, and every turn.
    """
    structure, target = cost.structure, target or Target()
    dense = target.ready(model, example_inputs)
    seen: list[Round] = []
    costs: list[LatencyCost] = []
    points: list[tuple[float, float]] = []
    beside = _Beside()
    kept: list[bool] = []
    while True:
        counts = candidate.counts
        pair = {
            "dense": dense,
            "pruned": target.ready(shrink(model, structure, candidate.keep), example_inputs),
        }
        found = timed(target, pair, example_inputs, rounds=rounds, progress=progress)
        measured = cost.dense_us / found.ratio("dense", "pruned").median
        predicted, step = cost.total_us(counts), candidate.next_step_us
        least = max(step, CERTAIN * budget_us)  # nothing closer is known
        lower, upper = 0.0 if math.isnan(step) else budget_us - least, 1.02 * budget_us
        if cost.also and budget_us - predicted > step:  # another limit holds the network back
            lower = 0.0
        cost = cost.limited(*beside.measured(cost, candidate.keep, counts))
        kept.append(all(one.measured is None or one.measured <= 1.02 * one.most for one in cost.also))
        seen.append(Round(len(seen) + 1, predicted, measured, lower, upper, measured / predicted))
        costs.append(cost)
        points.append((cost.raw(counts), measured))
        if lower <= measured <= upper and kept[-1]:
            return cost, seen
        if len(seen) >= TURNS:
            break
        cost = cost.with_calibration(fit(points, anchor=(cost.raw({}), cost.dense_us)))
        candidate.solve_again(cost)
    over = [turn.measured_us - turn.upper_us for turn in seen]
    best = max(range(len(seen)), key=lambda i: (kept[i], over[i] <= 0, -abs(over[i])))
    candidate.go_back(best)
    return costs[best], seen


class Chosen:
    """What a method has chosen, as the closed loop sees it.

    Args:
        method: of a latency; it has chosen at least once.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._turns = [(method.alive, method.reports[-1])]

    @property
    def counts(self) -> dict[str, int]:
        """Units per group."""
        return self._method.alive.counts

    @property
    def keep(self) -> dict[str, torch.Tensor]:
        """Which units stay."""
        return self._method.keep

    @property
    def next_step_us(self) -> float:
        """Smallest extra cost of any next allowed size."""
        return self._method.reports[-1].next_step

    def solve_again(self, cost: LatencyCost) -> None:
        """Lets the method choose again under a corrected cost."""
        assert isinstance(self._method.pool, LatencyPool)
        self._method.choose_again(self._method.pool.with_cost(cost))
        self._turns.append((self._method.alive, self._method.reports[-1]))

    def go_back(self, turn: int) -> None:
        """Takes the selection of an earlier turn (from 0) again."""
        self._method.adopt(*self._turns[turn])


def meet(
    method: Method, example_inputs: tuple[Any, ...], *, target: Target | None = None, rounds: int = 20
) -> list[Round]:
    """Measures what a method has chosen, and lets it choose again until it meets its latency.

    It is ``close_loop`` for a loop of your own. Call it when the method has finished, right before its ``shrink``.

    Args:
        method: of a latency.
        example_inputs: at the profile's batch size.
        target: what was profiled, such as ``Target(threads=2)``; by default ONNX Runtime with one thread.
        rounds: interleaved rounds of each measurement.

    Returns:
        Every turn; the method holds the selection of the best one.

    Raises:
        UsageError: its budget is no latency, or it has not finished.
    """
    if not isinstance(method.pool, LatencyPool) or not method.finished:
        raise UsageError(
            f"{type(method).__name__} was to meet a latency, and "
            + ("has not finished" if isinstance(method.pool, LatencyPool) else "its budget is none")
            + "; give it budget=halpiee.Latency(…), and call meet(…) once its `finished` is true, before shrink()"
        )
    given = (method.model, method.pool.cost, example_inputs, Chosen(method))
    return close_loop(*given, budget_us=method.pool.budget_us, target=target, rounds=rounds)[1]


class _Beside:
    """What was measured of the limits beside the latency, turn by turn."""

    def __init__(self) -> None:
        self._dense: dict[str, float] = {}
        self._points: dict[str, list[tuple[float, float]]] = {}

    def measured(
        self, cost: LatencyCost, keep: Mapping[str, torch.Tensor], counts: Mapping[str, int]
    ) -> list[Also]:
        """Returns the limits as this turn's measurements correct them: their lines, and what a share of dense is."""
        found = []
        for one in cost.also:
            if one.measure is None or not isinstance(one.cost, LatencyCost):
                found.append(one)
                continue
            dense, pruned = one.measure(keep)
            dense_us = self._dense.setdefault(one.name, dense)
            us = dense_us * pruned / dense
            points = self._points.setdefault(one.name, [])
            points.append((one.cost.raw(counts), us))
            line = fit(points, anchor=(one.cost.raw({}), dense_us))
            most = one.most if one.share is None else one.share * dense_us
            found.append(replace(one, cost=one.cost.with_calibration(line), most=most, measured=us))
        return found


RUNS, WARM_UP = 30, 5
"""Runs of each network that count, and those before them."""

PASSED = (
    "Relu", "Clip", "Add", "Mul", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Gelu", "Cast",
)  # fmt: skip
"""Ops that the runtime fuses into the layer before them, so that its kernel carries their output's name."""


def layer_times(
    paths: Mapping[str, Path], *, batch: int = 1, threads: int = 1, runs: int = RUNS
) -> dict[str, dict[str, float]]:
    """Returns name → layer → median µs of its kernels in one inference; networks run in turns.

    Layers are named by their module paths; what belongs to none by its op in brackets, summed.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: session(path, threads=threads, trace_to=Path(folder) / str(i))
            for i, (name, path) in enumerate(paths.items())
        }
        inputs = {name: feeds(runtime, batch=batch) for name, runtime in sessions.items()}
        for _ in range(WARM_UP + runs):
            for name, runtime in sessions.items():
                runtime.run(None, inputs[name])
        found = {}
        for name, runtime in sessions.items():
            events = json.loads(Path(runtime.end_profiling()).read_text())
            found[name] = _by_layer(events, _Names(paths[name]), runs)
    return found


def side_by_side(times: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Returns a row per layer, ``dense`` beside ``pruned``, in the order of the dense network; ops come last.

    A layer that the pruned network no longer has takes 0 µs.
    """
    dense, pruned = times["dense"], times["pruned"]
    names = sorted([*dense, *(name for name in pruned if name not in dense)], key=lambda n: n.startswith("("))
    return [{"layer": n, "dense_us": dense.get(n, 0.0), "pruned_us": pruned.get(n, 0.0)} for n in names]


def _by_layer(events: Iterable[Any], names: _Names, runs: int) -> dict[str, float]:
    """Returns layer → median over the last runs of its kernels' summed time, in the order they run."""
    kernels: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            kernels[name].append(float(event["dur"]))
            ops[name] = str(event.get("args", {}).get("op_name", "other"))
    layers: dict[str, Any] = {}
    for name, durations in kernels.items():
        # A kernel without a name of its own (a change of layout) has several in one inference: summed per inference.
        per_run = (
            np.array(durations[-(len(durations) // (runs + WARM_UP)) * runs :]).reshape(runs, -1).sum(axis=1)
        )
        layer = names.layer(name) or f"({ops[name]})"
        layers[layer] = layers.get(layer, 0.0) + per_run
    return {layer: float(np.median(us)) for layer, us in layers.items()}


class _Names:
    """Finds the module behind a kernel's name: that of a node, or of the tensor that a fused chain ends in."""

    def __init__(self, path: Path) -> None:
        import onnx

        graph = onnx.load(str(path)).graph
        self._weights = {tensor.name for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {output: node for node in graph.node for output in node.output}

    def layer(self, kernel: str) -> str | None:
        """Returns the module path of a kernel, None where it belongs to no layer."""
        name = re.sub(r"_nchwc$|_nhwc$", "", kernel.removeprefix("fused "))
        node = self._nodes.get(name) or self._makers.get(name)
        while node is not None:
            weights = [i for i in node.input[1:] if i in self._weights and i.endswith(".weight")]
            if weights:
                return str(weights[0]).removesuffix(".weight")
            if node.op_type not in PASSED:
                return self._scope(node) if node.op_type in ("Conv", "Gemm", "MatMul") else None
            node = self._makers.get(node.input[0])
        return None

    @staticmethod
    def _scope(node: Any) -> str | None:
        """Returns the module that a node was exported from, as PyTorch's exporter notes it."""
        scopes = next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "")
        modules = [name for name in re.findall(r"'([^']*)'", scopes)[:-1] if name]
        return modules[-1] if modules else None
