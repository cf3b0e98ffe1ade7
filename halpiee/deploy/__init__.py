"""Export and the proof that what is exported is what was trained."""

from halpiee.deploy.onnx import ExportReport, export_onnx
from halpiee.deploy.verify import Comparison, compare, relative_l2

__all__ = ["Comparison", "ExportReport", "compare", "export_onnx", "relative_l2"]
