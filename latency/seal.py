"""Seals: what this user's halpiee wrote on this machine is known again, and what anyone else wrote is not.

A seal is an HMAC with a key that lies in the user's home and that nobody else may read. It does not travel to other
machines, and it is only asked for where reading a file could run code.
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
from latency.errors import OutputInUseError, WriteError

__all__ = ["seal", "sealed"]


def seal(facts: Mapping[str, Any]) -> str:
    """Returns the seal of some JSON values; the key is made when it is first needed.

    Raises:
        OSError: there is no key, and none can be written.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def sealed(facts: Mapping[str, Any], found: object) -> bool:
    """Whether a seal is that of these values, made by this user here."""
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
