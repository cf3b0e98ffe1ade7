"""What decides a latency: the circumstances of a measurement, and the policy by which a kind of device is timed.

The environment (device, runtime, threads …) is data with an id. It holds no host names and no serial numbers: a profile
is reviewed like code and may be published.

`TimingPolicy` holds every figure that was fitted to a device. Most were fitted to two processors, an AMD EPYC with 32
MB of last-level cache and an Intel Xeon with 2 MB of second-level and 260 MB of last-level cache; the number behind
each figure is the decision that holds its evidence (decision 0122 lists them). Another device may want others::

    latency.sweep(ops, policy=replace(policy_for("cpu"), visits=1))
    register_policy("cpu", replace(policy_for("cpu"), anchor_near=1.3))
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from latency.errors import UsageError, need, unknown
from latency.op import Op, weight_bytes

IDENTITY = (
    "backend",
    "backend_version",
    "device",
    "cpu_flags",
    "threads",
    "dtype",
    "capability",
    "multiprocessors",
    "cuda",
    "cudnn",
    "tensorrt",
    "tf32",
    "protocol",
    "optimization",
)
"""Fields that must agree before two measurements may be mixed or compared; the other fields are only stated."""

PRECISIONS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precision as a user names it → type of weights and activations, as a profile states it."""

FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Instruction sets that a runtime picks its kernels by."""


def environment(
    backend: str = "onnxruntime", threads: int = 1, dtype: str = "float32", **settings: Any
) -> dict[str, Any]:
    """Returns the circumstances of a measurement made here and now.

    Args:
        backend: ``onnxruntime`` or ``torch``.
        threads: threads of the runtime.
        dtype: precision of the arithmetic.
        **settings: more fields, which replace those of the same name: what a backend sets, such as ``tf32``, or
            ``device`` where it is a GPU.
    """
    facts = cpu_facts()
    found: dict[str, Any] = {
        "backend": backend,
        "backend_version": _version(backend) or "unknown",
        "device": facts["model"],
        "cpu_flags": list(facts["flags"]),
        "cpu_caches": dict(facts["caches"]),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "dtype": dtype,
        "os": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "halpiee_version": _version("halpiee") or "unknown",
    }
    found.update(settings)
    found["id"] = environment_id(found)
    return found


def precision_of(environment: Mapping[str, Any]) -> str:
    """Returns the precision that an environment states."""
    short = {dtype: name for name, dtype in PRECISIONS.items() if dtype != "float32"}
    return short.get(str(environment.get("dtype")), "tf32" if environment.get("tf32") else "fp32")


def environment_id(fields: Mapping[str, Any]) -> str:
    """Returns twelve hexadecimal digits that name the fields of ``IDENTITY``."""
    identity = {k: fields[k] for k in IDENTITY if k in fields}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the fields of ``IDENTITY`` that both state, and state differently."""
    return {k: (a[k], b[k]) for k in IDENTITY if k in a and k in b and a[k] != b[k]}


def cpu_facts() -> dict[str, Any]:
    """Returns ``model``, ``flags`` that matter for speed, and ``caches`` of this CPU."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    first: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        first[key.strip()] = value.strip()
    if text:
        name = first.get("model name") or first.get("Processor") or model
        numbers = [first[k] for k in ("cpu family", "model") if k in first]
        model = f"{name} ({'/'.join(numbers)})" if numbers else name
        flags = set((first.get("flags") or first.get("Features") or "").split())
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() != "Instruction":
                level = (index / "level").read_text().strip()
                caches[f"L{level}"] = (index / "size").read_text().strip()
        except OSError:
            continue
    return {"model": model, "flags": tuple(f for f in FLAGS if f in flags), "caches": caches}


def clocks(device: int = 0) -> dict[str, Any]:
    """Returns the clock of a GPU's multiprocessors and what throttles it, by NVML; empty where that is not there."""

    def read(nvml: Any, gpu: Any) -> dict[str, Any]:
        reasons = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        names = {
            "power": nvml.nvmlClocksThrottleReasonSwPowerCap,
            "heat": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
            "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
        }
        return {
            "sm_mhz": int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            "throttled": [name for name, bit in names.items() if reasons & int(bit)],
        }

    return _by_nvml(device, read)


def limits(device: int = 0) -> dict[str, Any]:
    """Returns driver, highest clock and power limit of a GPU, by NVML; empty where that is not there."""
    return _by_nvml(
        device,
        lambda nvml, gpu: {
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
            "most_sm_mhz": int(nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            "power_limit_w": round(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3),
        },
    )


def _by_nvml(device: int, read: Callable[[Any, Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        import pynvml

        pynvml.nvmlInit()
        return read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(device))
    except Exception:  # no library, no driver, no right to ask: a profile without clocks
        return {}


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps the calling thread on the first core while several threads work; gives the old affinity back.

    Without it the runtime's worker often shares the caller's core: the same network then takes 210 or 385 µs.
    """
    if threads <= 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    old = os.sched_getaffinity(0)
    if len(old) < threads:
        raise UsageError(
            f"{threads} threads were asked for; this process may use {len(old)} cores; "
            f"ask for at most {len(old)} threads"
        )
    os.sched_setaffinity(0, {min(old)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, old)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class TimingPolicy:
    """The figures by which ops and networks are timed on one kind of device.

    Attributes:
        anchor_agree: anchors on both sides of a run that agree to this ratio: nothing came or went between (0063).
        anchor_near: up to this multiple of its floor an anchor shows the core's speed, beyond it contention (0063).
        anchor_runs: runs of an anchor until it gets no faster, at most (0062).
        anchor_samples: last samples that the floor is taken from; contention that stays for longer is taken for the
            device (0064).
        anchor_renewed: samples after which the floor is taken anew (0064).
        anchor_seconds: in which a sweep looks for its first floor (0064).
        back: data is back in the caches when a run is not faster than the one before by more than this (0062, 0066).
        block: runs of a network in one block of its warm-up, which ends when a block's fastest gains no more (0066).
        block_runs: runs of a warm-up at most (0066).
        burst: a quiet run beyond this multiple of the fastest was hit between its anchors (0063).
        repeats: the fastest runs are uncontended when three of them agree to this (0062).
        builds_agree, builds_agree_us: two builds agree within this share or time, the error of more in half (0050).
        most_builds: of one cell (0050).
        builds_seconds: spent on the builds of one cell, from the third on (0050).
        visits: of a cell that is contended or whose builds differ, until its result is final (0065).
        again_share, again_seconds: of all time that visits beyond the first take, and besides, at most (0065).
        calm_samples: of the anchor, most of which are quiet before a cell is visited again (0065).
        pause_seconds: until the next look, where only contended cells are left (0065).
        together: cells after which contended ones are visited again, and that wait at most (0065).
        uncertain_share: what may be wrong by less than this share of the longest cell is not visited again (0065).
        group: cells with cold weights that are timed in turns (0056).
        rounds: of cells in turns before the first that counts (0057).
        narrow: channels of the op that runs untimed between emptying the caches and a round (0056).
        seldom: an op that uses each weight up to so many times in a run takes longer where its weights are cold (0054).
        large_bytes: bytes of weights of a table's widest op from which they are timed cold (0054).
        few_bytes: bytes of weights of a cell up to which they are timed warm in any case (0054).
        cache_bytes: of the last cache, where the device does not say (0054).
        cache_holds: a last cache of so many times the network's weights holds them (0058).
        cache_emptied: then so many times the cache before it is read between two uses of a weight (0058).
        streamed: uses of each weight up to which reading the weights is all that a linear layer takes (0055).
        sample_bytes: of weights, about, of the op that shows what a byte takes (0055).
        rate_builds, rate_together: builds that show it, and how many of these exist at once (0055).
        least_copies: of an op in one build, where they are not too large (0053; on GPUs 0122).
        most_copies: of an op in one build (0053; on GPUs 0122).
        short_macs: work of the copies beyond the first of a short op, together (0053).
        long_macs: work of four copies up to which there are five (0053).
        copies_bytes: of weights of all copies together, beyond which there are two (0053).
        step_flat: share of a proportional saving that one width inside a short step may show (0067).
        step_inside: share that all of them together may show, or one inside a longer step (0067).
        step_slower: a width that takes this multiple of a wider one is slow for a reason of its own (0067).
        pattern_error: share of an axis's widest time by which a pattern may miss an edge (0067).
        table_error: a held-out cell that its table misses by more than this share asks for more cells (0068).
        series_us: on a GPU, time of the longer of the two calls: event times are unreliable below 10 µs (0122).
        rotated: on a GPU, most copies of an op's weights (0122).
    """

    anchor_agree: float = 1.03
    anchor_near: float = 1.15
    anchor_runs: int = 6
    anchor_samples: int = 1 << 16
    anchor_renewed: int = 1000
    anchor_seconds: float = 2.0
    back: float = 1.01
    block: int = 4
    block_runs: int = 40
    burst: float = 1.05
    repeats: float = 1.01
    builds_agree: float = 0.03
    builds_agree_us: float = 0.3
    most_builds: int = 16
    builds_seconds: float = 0.6
    visits: int = 3
    again_share: float = 0.25
    again_seconds: float = 15.0
    calm_samples: int = 20
    pause_seconds: float = 0.1
    together: int = 100
    uncertain_share: float = 0.001
    group: int = 16
    rounds: int = 16
    narrow: int = 16
    seldom: int = 600
    large_bytes: int = 1 << 20
    few_bytes: int = 1 << 16
    cache_bytes: int = 32 << 20
    cache_holds: int = 4
    cache_emptied: int = 4
    streamed: int = 8
    sample_bytes: int = 2 << 20
    rate_builds: int = 24
    rate_together: int = 8
    least_copies: int = 3
    most_copies: int = 9
    short_macs: int = 1 << 16
    long_macs: int = 1 << 25
    copies_bytes: int = 8 << 20
    step_flat: float = 0.65
    step_inside: float = 0.4
    step_slower: float = 1.08
    pattern_error: float = 0.04
    table_error: float = 0.04
    series_us: float = 2000.0
    rotated: int = 32

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UsageError(
                    f"the timing policy's {one.name} {value!r} was asked for; give a number from 0"
                )
            if isinstance(one.default, int) and not (isinstance(value, int) and value > 0):
                raise UsageError(
                    f"the timing policy's {one.name} {value!r} was asked for; give a whole number from 1"
                )

    def few_weights(self, op: Op) -> bool:
        """Returns whether an op has so few weights that it does not matter where they come from."""
        return weight_bytes(op) <= self.few_bytes

    def used_seldom(self, op: Op) -> bool:
        """Returns whether an op uses each weight so seldom that it matters where they come from."""
        return op.macs <= self.seldom * op.weights

    def copies(self, op: Op) -> int:
        """Returns how many copies of an op a differential graph has: 2 to ``most_copies``.

        Enough that their time is large beside the call, and that they have many places of their weights. Both sides of
        the difference vary from build to build; of k copies less one its variance is (k + 1) / (k − 1)² of theirs: 3,
        1, 0.4 for two, three, five.
        """
        macs = max(1, op.macs)
        more = max(self.least_copies - 1, min(4, self.long_macs // macs), round(self.short_macs / macs))
        room = max(1, self.copies_bytes // max(1, weight_bytes(op)) - 1)
        if not self.few_weights(op) and self.used_seldom(op):
            more = room
        return 1 + min(self.most_copies - 1, more, room)

    def series(self, one_us: float) -> int:
        """Returns how many copies of an op of so many µs the longer of a GPU's two calls holds."""
        return int(min(self.most_copies, max(self.least_copies, self.series_us / one_us)))

    def weight_copies(self, op: Op, network: Sequence[Op], cache_bytes: int) -> int:
        """Returns how many copies of its weights an op has on a GPU, so that they are as cold as in its network.

        Between two uses of a weight a network reads all its others: so many bytes the copies have together, at most
        twice the last cache's, beyond which nothing is left of the first. One rule for all runtimes.
        """
        beyond = 2 * cache_bytes
        distance = min(sum(map(weight_bytes, network)), beyond) if network else beyond
        return max(1, min(self.rotated, -(-distance // max(1, weight_bytes(op)))))


_POLICIES = {"cpu": TimingPolicy(), "cuda": TimingPolicy(least_copies=8, most_copies=256)}


def policy_for(kind: str) -> TimingPolicy:
    """Returns the policy that is registered for a kind of device.

    Raises:
        UsageError: no such kind.
    """
    if kind not in _POLICIES:
        known = unknown(kind, _POLICIES, f"there are those of {', '.join(_POLICIES)}")
        raise UsageError(f"the timing policy of {kind!r} was asked for; {known}")
    return _POLICIES[kind]


def register_policy(kind: str, policy: TimingPolicy) -> None:
    """Registers the policy of a kind of device, for backends that are made from now on.

    Args:
        kind: ``cpu``, ``cuda``, or another one that a backend names as its ``device_kind``.
        policy: replaces the one that was registered.
    """
    need(kind, str, "a kind of device", "give a backend's device_kind, such as 'cpu'")
    need(policy, TimingPolicy, "the policy of a kind of device", "give a latency.TimingPolicy")
    _POLICIES[kind] = policy


def kind_of_environment(environment: Mapping[str, Any]) -> str:
    """Returns the kind of device that a profile was measured on."""
    return "cuda" if "cuda" in environment else "cpu"
