"""No two files of the package need each other."""

from __future__ import annotations

import ast
from pathlib import Path

import halpiee.selection


def test_imports_go_in_one_direction() -> None:
    files = Path(halpiee.selection.__path__[0]).glob("*.py")
    prefix = "halpiee.selection."
    needs = {
        file.stem: {
            node.module.removeprefix(prefix)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(prefix)
        }
        for file in files
    }
    while leaves := {name for name, wanted in needs.items() if not wanted & set(needs)}:
        needs = {name: wanted for name, wanted in needs.items() if name not in leaves}
    assert needs == {}
