"""What can be removed: coupled units of a model, and their exact removal."""

from halpiee.structure.explain import Explanation, explain
from halpiee.structure.groups import (
    ChannelGroup,
    GroupRef,
    Layer,
    Slot,
    Structure,
    TimedOp,
    macs,
    parameters,
    widths,
)
from halpiee.structure.plan import Plan
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, Timing
from halpiee.structure.rules import add_rule
from halpiee.structure.shrink import masked, shrink
from halpiee.structure.trace import trace
from halpiee.structure.verification import relative_error, verify

__all__ = [
    "Call",
    "ChannelGroup",
    "Explanation",
    "GroupRef",
    "Layer",
    "Plan",
    "Recorder",
    "Slot",
    "Structure",
    "TimedOp",
    "Timing",
    "add_rule",
    "explain",
    "macs",
    "masked",
    "parameters",
    "relative_error",
    "shrink",
    "trace",
    "verify",
    "widths",
]
