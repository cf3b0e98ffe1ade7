"""An engine as a file, with what it belongs to beside it: a cache that is rebuilt, never an artefact.

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

from latency.errors import UsageError

__all__ = ["facts_of", "read_engine", "sidecar", "write_engine"]


def sidecar(path: Path) -> Path:
    """Returns the file beside an engine."""
    return path.with_name(f"{path.name}.json")


def write_engine(path: Path, plan: bytes, facts: Mapping[str, Any]) -> None:
    """Writes an engine and what it belongs to, sealed; the engine comes last, so that it never stands alone.

    Args:
        path: of the engine.
        plan: the engine.
        facts: ``tensorrt``, ``device``, ``onnx_sha256`` … as JSON.
    """
    stated = {**facts, "engine_sha256": hashlib.sha256(plan).hexdigest()}
    content = json.dumps({**stated, "seal": _seal(stated)}, indent=1, sort_keys=True).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, data in ((sidecar(path), content), (path, plan)):
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(target)


def facts_of(path: Path) -> dict[str, Any] | None:
    """Returns what stands beside an engine; None where there is nothing, or nothing readable."""
    try:
        found = json.loads(sidecar(path).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_engine(path: Path, *, trust: bool = False) -> bytes:
    """Returns an engine's bytes.

    Args:
        path: of the engine.
        trust: whether one may be read that this user's halpiee did not write.

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
    seal = str(facts.pop("seal", ""))
    whole = facts.get("engine_sha256") == hashlib.sha256(plan).hexdigest()
    if not (whole and hmac.compare_digest(seal, _seal(facts))):
        raise UsageError(
            f"the engine {path} was to be loaded, which runs code in it, and it was not built by halpiee here; build "
            "it here from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`, or --trust-engine"
        )
    return plan


def _seal(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """Returns this user's key, which is made when it is first needed and which nobody else may read."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "halpiee"
    path = home / "engine.key"
    if not path.is_file():
        home.mkdir(parents=True, exist_ok=True)
        part = home / f".engine.key.{os.getpid()}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(part, path)  # the first of two processes wins
        except FileExistsError:
            pass
        finally:
            part.unlink()
    return path.read_bytes()
