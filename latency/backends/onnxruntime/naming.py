"""What the inputs, outputs and free dimensions of an ONNX model are called.

Inputs have the names of forward's arguments, outputs the keys of what it returns, so that who loads the file feeds and
reads it as one calls the network. The exporter's own names are replaced in the finished graph, where a name that is
taken by a weight or a value inside can be seen and made way for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latency.errors import UsageError

if TYPE_CHECKING:
    import onnx


INSIDE = ".inside"
"""Suffix of a value or weight inside a graph whose name an input or output takes."""


def checked_names(
    own: Sequence[str], asked: Sequence[str] | None, what: str, taken: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the names of a side, each once: those asked for, else the network's own, which make way for ``taken``.

    Raises:
        UsageError: names that are empty, twice there, taken, or another number than the network has tensors.
    """
    if asked is None:
        found: list[str] = []
        for name in own:
            free = name or what
            while free in taken:
                free += "_out"
            number = 1
            while free in found:
                free, number = f"{name}_{number}", number + 1
            found.append(free)
        return tuple(found)
    if len(asked) != len(own):
        raise UsageError(
            f"{len(asked)} {what} names were given ({', '.join(asked) or 'none'}); the network has {len(own)} "
            f"{what}s ({', '.join(own)}); give as many"
        )
    wrong = [name for i, name in enumerate(asked) if not name.strip() or name in asked[:i] or name in taken]
    if wrong:
        raise UsageError(
            f"{wrong[0]!r} was given as the name of an {what}, and is empty or has been given already; give each "
            "input and output a name of its own"
        )
    return tuple(asked)


def name_ends(proto: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives the inputs and outputs of a model names, in place; what inside has such a name gets another."""
    from onnx import helper

    graph = proto.graph
    new = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for i, (value, name) in enumerate(zip(graph.output, outputs, strict=True)):
        if value.name in new:  # an input that is passed on, or one value that is given twice
            copy = f"{value.name}.passed_{i}"
            graph.node.append(helper.make_node("Identity", [value.name], [copy], name=copy))
            value.name = copy
        new[value.name] = name
    ends = set(new.values())
    for name in _names(graph):
        if name in ends and name not in new:
            new[name] = f"{name}{INSIDE}"
    _rename(graph, {old: name for old, name in new.items() if old != name})


def name_sizes(proto: onnx.ModelProto, names: Mapping[tuple[int, int], str]) -> None:
    """Gives the free dimensions of a model names, in place: (number of an input, its dimension) → name."""
    new: dict[str, str] = {}
    for (number, dim), name in names.items():
        found = proto.graph.input[number].type.tensor_type.shape.dim[dim]
        if found.HasField("dim_param"):
            new.setdefault(found.dim_param, name)
    if not new:
        return
    pattern = re.compile(
        r"\b(" + "|".join(re.escape(old) for old in sorted(new, key=len, reverse=True)) + r")\b"
    )
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for place in value.type.tensor_type.shape.dim:
            if place.HasField("dim_param"):
                place.dim_param = pattern.sub(lambda match: new[match.group()], place.dim_param)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _names(graph: Any) -> set[str]:
    """Returns the names of all values and weights."""
    found: set[str] = set()
    for one in _graphs(graph):
        found |= {value.name for value in (*one.input, *one.initializer, *one.output)}
        found |= {name for node in one.node for name in (*node.input, *node.output)}
    return found


def _rename(graph: Any, new: Mapping[str, str]) -> None:
    for one in _graphs(graph):
        for value in (*one.input, *one.output, *one.value_info, *one.initializer):
            value.name = new.get(value.name, value.name)
        for node in one.node:
            for names in (node.input, node.output):
                names[:] = [new.get(name, name) for name in names]
