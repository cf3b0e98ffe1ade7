"""Which ops of a forward feed an output? What one reads to log it is no reason for its channels to stay.

An op is left out of a trace where nothing that counts reads what it makes: no output, nothing that is written in
place, no op that puts an activation and a parameter together (which runs in the cut network too, and has to fit).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from halpiee.structure.calls import Event

__all__ = ["idle", "needed"]


def needed(events: Sequence[Event], given: Mapping[int, str], outputs: Collection[int]) -> set[int]:
    """Returns the places of the events of a forward that count.

    Args:
        events: the events.
        given: value number → name, for parameters, buffers and inputs.
        outputs: value numbers of what has to be computed.
    """
    made_of_parameters = {value for value, name in given.items() if not name.startswith("input")}
    mixed = set()
    for place, event in enumerate(events):
        apart = [value in made_of_parameters for value in event.reads]
        if apart and all(apart):
            made_of_parameters.update(event.writes)
        elif any(apart):
            mixed.add(place)
    values = set(outputs)
    found = set()
    for place in range(len(events) - 1, -1, -1):
        event = events[place]
        if place in mixed or event.name.endswith("_") or values.intersection(event.writes):
            found.add(place)
            values.update(event.reads)
    return found


def idle(events: Sequence[Event], places: Collection[int]) -> frozenset[int]:
    """Returns the numbers of the ops that do not count, and that have changed what is known of the units."""
    return frozenset(
        event.number for place, event in enumerate(events) if place not in places and event.changed
    )
