"""Numbers in TensorRT's types, as numpy holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DTYPES", "from_float", "random_numbers", "to_float"]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT32": "int32", "INT64": "int64",
          "BOOL": "bool", "INT8": "int8", "UINT8": "uint8"}  # fmt: skip
"""numpy's name for TensorRT's types; bfloat16, which numpy lacks, as its sixteen bits."""


def random_numbers(rng: np.random.Generator, count: int, dtype: str) -> Any:
    """Returns numbers of a standard normal in one of TensorRT's types; zeros for types that are not floating."""
    if dtype not in ("FLOAT", "HALF", "BF16"):
        return np.zeros(count, dtype=DTYPES[dtype])
    return from_float(rng.standard_normal(count, dtype=np.float32), dtype)


def from_float(array: Any, dtype: str) -> Any:
    """Returns an array in one of TensorRT's types; bfloat16 as the upper half of float32, rounded to nearest even."""
    if dtype != "BF16":
        return np.ascontiguousarray(array, dtype=DTYPES[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(array: Any) -> Any:
    """Returns bfloat16 bits as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)
