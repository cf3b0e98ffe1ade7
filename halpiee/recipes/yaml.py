"""The door of YAML files: a few plain values by name, read without anchors, tags, doubles or depth."""

from __future__ import annotations

from typing import Any

import yaml

from halpiee.errors import UsageError

__all__ = ["MOST_ALIASES", "options_in"]

MOST_ALIASES, MOST_DEPTH, MOST_EVENTS = 16, 16, 10_000
"""Aliases to anchors, which a reader multiplies out (ten levels of ten are 10 billion values), nesting, and parts."""

AGAIN = "write one `option: value` a line"


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping whose names all differ."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value[:80]!r} stands twice", key.start_mark
                )
            seen.add(getattr(key, "value", None) if isinstance(key, yaml.ScalarNode) else None)
        return dict(super().construct_mapping(node, deep))


def options_in(text: str, *, what: str) -> Any:
    """Returns the value of a YAML text.

    Args:
        text: of the file.
        what: the file in words.

    Raises:
        UsageError: it is no YAML, has tags of Python objects, or is nested or multiplied out of all bounds.
    """
    try:
        _check(text, what)
        return yaml.load(text, _Once)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, AttributeError, TypeError) as error:
        words = " ".join(str(error).split())[:300]
        raise UsageError(f"{what} is not YAML: {words}; {AGAIN}") from error


def _check(text: str, what: str) -> None:
    """Counts what would be multiplied out, before anything is."""
    depth = aliases = 0
    for events, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode("utf-8")  # half of a pair is no text
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MOST_ALIASES or depth > MOST_DEPTH or events > MOST_EVENTS:
            raise UsageError(
                f"{what} is nested more than {MOST_DEPTH} deep, has more than {MOST_ALIASES} aliases or more than "
                f"{MOST_EVENTS:,} parts, which no recipe has; {AGAIN}"
            )
