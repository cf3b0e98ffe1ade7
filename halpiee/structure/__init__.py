"""What can be removed: coupled units of a model, and their exact removal."""

from halpiee.structure.explain import Explanation, explain
from halpiee.structure.groups import ChannelGroup, GroupRef, Layer, Slot, Structure, TimedOp
from halpiee.structure.masked import masked
from halpiee.structure.plan import Plan
from halpiee.structure.proof import relative_error, verify
from halpiee.structure.shrink import shrink
from halpiee.structure.size import macs, parameters, widths
from halpiee.structure.trace import trace

__all__ = [
    "ChannelGroup",
    "Explanation",
    "GroupRef",
    "Layer",
    "Plan",
    "Slot",
    "Structure",
    "TimedOp",
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
