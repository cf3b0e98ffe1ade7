"""Export and the proof that what is exported is what was trained."""

from halpiee.deploy.calibrate import calibrate, meet
from halpiee.deploy.int8 import FileNetwork, Int8Report, export_int8
from halpiee.deploy.onnx import ExportReport, export_onnx, metadata_of, stamp
from halpiee.deploy.target import Target
from halpiee.deploy.verify import Comparison, compare
from halpiee.structure.verification import relative_l2

__all__ = [
    "Comparison",
    "ExportReport",
    "FileNetwork",
    "Int8Report",
    "Target",
    "calibrate",
    "compare",
    "export_int8",
    "export_onnx",
    "meet",
    "metadata_of",
    "relative_l2",
    "stamp",
]
