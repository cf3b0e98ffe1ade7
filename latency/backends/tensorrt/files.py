"""An engine file and the facts beside it. The file is a cache that is rebuilt, never an artefact.

Engines are executable: loading one runs code that it carries. So only those are loaded that this user's halpiee wrote,
which a seal shows (an HMAC over the engine and what stands beside it, with a key that lies in the user's home), unless
the caller says that he trusts it. A seal does not travel to other machines; neither does an engine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latency._files import write
from latency.errors import OutputInUseError, UsageError, WriteError
from latency.outside import parsed, read_bytes

ENGINE_FILES = (".engine", ".plan", ".trt")
"""Endings of engines."""


def sidecar(path: Path) -> Path:
    """Returns the file beside an engine."""
    return path.with_name(f"{path.name}.json")


def write_engine(path: Path, plan: bytes, facts: Mapping[str, Any]) -> None:
    """Writes an engine and its facts, sealed; the engine last, so that it never stands alone."""
    stated = {**facts, "engine_sha256": hashlib.sha256(plan).hexdigest()}
    content = json.dumps({**stated, "seal": seal(stated)}, indent=1, sort_keys=True).encode()
    for target, data in ((sidecar(path), content), (path, plan)):
        write(target, data, overwrite=True)


def facts_of(path: Path) -> dict[str, Any] | None:
    """Returns the facts in the file beside an engine; None where there is no readable one."""
    what, advice = str(sidecar(path)), "build the engine again"
    try:
        found = parsed(read_bytes(sidecar(path), what=what, advice=advice), what=what, advice=advice)
    except UsageError:
        return None
    return found if isinstance(found, dict) else None


def read_engine(path: Path, *, trust: bool = False) -> bytes:
    """Returns an engine's bytes; ``trust`` reads one that this user's halpiee did not write.

    Raises:
        UsageError: it cannot be read, or it was not written by this user's halpiee.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the engine {path} cannot be read: {error.strerror}; check the path") from None
    if trust:
        return plan
    facts = facts_of(path) or {}
    stated = facts.pop("seal", None)
    whole = facts.get("engine_sha256") == hashlib.sha256(plan).hexdigest()
    if not (whole and sealed(facts, stated)):
        raise UsageError(
            f"the engine {path} was to be loaded, which runs code in it, and it was not built by halpiee here; build "
            "it here from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`, or --trust-engine"
        )
    return plan


def check_library(path: Path, trt: Any, device: Mapping[str, Any]) -> None:
    """Refuses an engine whose facts name another library or other GPUs."""
    facts = facts_of(path) or {}
    own = "tensorrt-rtx" if hasattr(trt, "IRuntimeCache") else "tensorrt"
    if facts.get("library", own) != own:
        names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
        raise UsageError(
            f"{path} is an engine of {names.get(facts['library'], facts['library'])}, and {names[own]} was to load it; "
            f"name the backend {facts['library']}, or export the ONNX file again with --format {own}"
        )
    listed = facts.get("capabilities") or []
    here = str(device.get("capability", "")).replace(".", "")
    if listed and here not in map(str, listed):
        raise UsageError(
            f"{path} was built for compute capabilities {', '.join(map(str, listed))}, and {device['device']} has "
            f"{here}; export it again with --compute-capability {here}"
        )


def seal(facts: Mapping[str, Any]) -> str:
    """Returns the seal of some JSON values; the key is made when it is first needed.

    Raises:
        OSError: there is no key, and none can be written.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def sealed(facts: Mapping[str, Any], found: object) -> bool:
    """Returns whether a seal belongs to these values and was made by this user here."""
    try:
        return isinstance(found, str) and hmac.compare_digest(found.encode(), seal(facts).encode())
    except (OSError, ValueError, TypeError):
        return False


def _key() -> bytes:
    """Returns this user's key, which is made when it is first needed and which nobody else may read."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "halpiee"
    path = home / "engine.key"
    if not path.is_file():
        try:
            write(path, secrets.token_bytes(32), private=True)
        except OutputInUseError:  # another process made it just now
            pass
        except WriteError as error:
            raise OSError(str(error)) from error
    return path.read_bytes()
