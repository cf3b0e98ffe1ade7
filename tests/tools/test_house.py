"""The figures of the source, on sources small enough to count by hand."""

from __future__ import annotations

import ast
from pathlib import Path

from tools.house import LIMITS, circles, functions, imports

SOURCE = '''
def short(a, /, b, *rest, c=1, **more):
    return a


class Thing:
    def method(self, x):
        """Two."""

        def inner():
            pass

        return inner
'''


def test_lengths_run_from_def_to_the_last_line_and_self_is_no_parameter() -> None:
    found = {f.name: (f.lines, f.parameters) for f in functions(Path("thing.py"), ast.parse(SOURCE))}
    assert found == {"short": (2, 5), "method": (7, 1), "inner": (2, 0)}


def test_an_overload_is_no_function() -> None:
    source = "@overload\ndef f(a): ...\ndef f(a):\n    return a\n"
    assert [f.lines for f in functions(Path("f.py"), ast.parse(source))] == [2]


def test_an_import_of_a_name_is_one_of_its_module_and_hidden_imports_count() -> None:
    sources = {
        "p": "",
        "p.a": "from p.b import thing\nimport json",
        "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import c",
        "p.c": "def f():\n    import p.a",
    }
    edges = imports({name: ast.parse(text) for name, text in sources.items()})
    assert edges == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}}
    assert circles(edges) == [("p.a", "p.b", "p.c")]


def test_two_circles_are_two_and_a_chain_is_none() -> None:
    edges = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(edges) == [("a", "b"), ("d", "e")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_every_limit_is_at_least_its_aim() -> None:
    assert all(limit.at_most >= limit.aim for limit in LIMITS.values())
