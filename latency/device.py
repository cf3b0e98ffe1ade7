"""The circumstances that decide a latency (device, runtime, threads …), as data with an id.

No host names and no serial numbers: a profile is reviewed like code and may be published.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from latency.errors import UsageError

__all__ = [
    "IDENTITY",
    "clocks",
    "cpu_facts",
    "differences",
    "environment",
    "environment_id",
    "limits",
    "pinned",
]

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
"""Fields that must agree before two measurements may be mixed or compared; the others are told, not compared."""

FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Instruction sets that a runtime picks its kernels by."""


def environment(
    backend: str = "onnxruntime",
    threads: int = 1,
    dtype: str = "float32",
    **settings: Any,
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
