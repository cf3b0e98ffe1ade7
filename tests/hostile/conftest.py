"""A module that must not be imported, and a check that nothing was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halpiee.errors import HalpieeError


@pytest.fixture(autouse=True)
def hostile(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts ``forbidden_code:call`` on the path and on every way to a shell, and fails where one of them is reached."""
    home = tmp_path_factory.mktemp("path")
    (home / "forbidden_code.py").write_text("def call(*args, **kwargs):\n    raise SystemExit('called')\n")
    monkeypatch.syspath_prepend(str(home))
    ran: list[object] = []
    monkeypatch.setattr("subprocess.getoutput", lambda *command, **_: ran.append(command))
    monkeypatch.setattr("os.system", lambda *command: ran.append(command))
    yield
    assert "forbidden_code" not in sys.modules
    assert not ran


def one_sentence(text: str) -> bool:
    """Whether a message is one line of moderate length that a terminal can show."""
    return 20 < len(text) < 900 and "\n" not in text and "Traceback" not in text and bool(text.encode())


def refusal(work: Callable[[], object]) -> str | None:
    """Returns the message that work was refused with, or None; any other exception comes through."""
    try:
        work()
    except HalpieeError as error:
        return str(error)
    return None


def content(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
