"""Zeros in the weights: written as zeros, in the order that sparse kernels read; what they bring is said plainly.

A 2:4 weight has at most two values that are not zero in every run of four along the dimension it sums over: the input
features of a linear layer, the input channels of a convolution at each kernel position. TensorRT's sparse kernels and
PyTorch's semi-structured tensors both read runs in that order. Dense kernels (ONNX Runtime, PyTorch without such
tensors) multiply by the zeros like by any number: no speed, only files that compress better.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halpiee.errors import MissingError, StructureError, UsageError
from latency.backends.torch.modules import copy_of

REDUCED = {"Conv": 1, "Gemm": 0, "MatMul": -2}
"""Dimension of the weight (the second input) that an ONNX op sums over; of Gemm where it is not transposed."""

LINEAR_DTYPES = (torch.float16, torch.bfloat16)
"""What semi-structured kernels of floating point take."""


@dataclass(frozen=True)
class Zeros:
    """Zeros in the weights of a file's layers."""

    share: float  # share of zeros among the weights of conv and linear layers
    layers: int  # number of those layers
    patterned: int  # how many of them keep at most two of four along the dimension they sum over
    size_bytes: int  # of the file
    zipped_bytes: int  # of the file when deflated, as a download or a package holds it

    @property
    def text(self) -> str:
        """What they bring, in a sentence."""
        if self.share < 0.01:
            return "no zeros to speak of"
        speed = "no speed on ONNX Runtime or PyTorch, whose kernels multiply by zeros too"
        if self.patterned:
            speed += (
                f"; {self.patterned} of {self.layers} layers are 2:4, which a TensorRT engine built with "
                "sparse weights may use (Ampere or newer)"
            )
        return (
            f"{self.share:.1%} of the weights are zero: {speed}; zipped the file takes {self.zipped_bytes / 1e6:.2f} "
            f"of {self.size_bytes / 1e6:.2f} MB"
        )


def with_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy whose inactive weights are zeros; the model stays as it is.

    Args:
        model: any module.
        masks: parameter name → BoolTensor of its shape: what is active.

    Raises:
        StructureError: a mask of a parameter that is not there, or of another shape.
    """
    copied = copy_of(model)
    parameters = dict(copied.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise StructureError(
                    f"a mask of {name!r} with shape {tuple(mask.shape)} was to be applied, the model has {found}; "
                    "use the masks of this very network"
                )
            # Not a product: an inactive infinity or NaN must become zero as well.
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
    return copied


def follows(weight: Tensor | NDArray[Any], n: int = 2, m: int = 4, *, dim: int = 1) -> bool:
    """Returns whether at most n of every m consecutive values along a dimension are not zero.

    Args:
        weight: ``[C_out, C_in, …]``.
        n: values that may stay.
        m: length of a run; a dimension that it does not divide does not follow.
        dim: the dimension that the layer sums over.
    """
    array = weight.detach().cpu().float().numpy() if isinstance(weight, Tensor) else np.asarray(weight)
    if array.ndim < 2 or array.shape[dim] % m:
        return False
    runs = np.moveaxis(array, dim, -1).reshape(-1, m)
    return bool(((runs != 0).sum(axis=1) <= n).all())


def zeros_in(path: Path) -> Zeros:
    """Returns what zeros the layers of an ONNX file hold, how many follow 2:4, and how small the file zips."""
    import onnx

    model = onnx.load(str(path))
    total = zero = layers = patterned = 0
    for array, dim in _weights(model):
        layers += 1
        total += array.size
        zero += int((array == 0).sum())
        patterned += follows(array, dim=dim)
    content = path.read_bytes()
    return Zeros(zero / max(total, 1), layers, patterned, len(content), len(zlib.compress(content, 6)))


def semi_structured(model: nn.Module, *, device: str = "cuda") -> tuple[nn.Module, dict[str, str]]:
    """Returns a copy whose 2:4 linear layers hold semi-structured tensors, and the layers left dense with the reason.

    Args:
        model: with 2:4 zeros in its weights, as ``with_zeros`` leaves them.
        device: where it goes: a GPU of compute capability 8.0 or newer.

    Raises:
        MissingError: no such GPU.
        UsageError: no linear layer can be made so.
    """
    if not device.startswith("cuda") or not torch.cuda.is_available():
        raise MissingError(
            f"semi-structured tensors were asked for on {device}; their kernels need a CUDA device of compute "
            "capability 8.0 or newer; on the CPU export to ONNX instead, where the zeros stay zeros"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise MissingError(
            f"semi-structured tensors were asked for on {device}, of compute capability "
            f"{capability[0]}.{capability[1]}; they need 8.0 or newer: export to ONNX instead, where zeros stay"
        )
    copied = copy_of(model).eval().to(device)
    left, made = {}, 0
    for name, module in copied.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        reason = obstacle(module.weight)
        if reason is not None:
            left[name] = reason
            continue
        sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
        module.weight = nn.Parameter(sparse, requires_grad=False)
        made += 1
    if not made:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:4]) or "it has none"
        raise UsageError(
            f"semi-structured tensors were asked for, and no linear layer of {type(model).__name__} can be one "
            f"({why}); give the model in half precision, with 2:4 zeros"
        )
    return copied, left


def obstacle(weight: Tensor) -> str | None:
    """Returns why a linear weight ``[C_out, C_in]`` cannot be semi-structured, None where it can."""
    if weight.dtype not in LINEAR_DTYPES:
        return f"{str(weight.dtype).removeprefix('torch.')}, the kernels take float16 and bfloat16"
    rows, columns = weight.shape
    if rows % 32 or columns % 64:  # 16-bit kernels of CUTLASS; cuSPARSELt takes 16 by 16
        return f"{rows}×{columns}, the kernels take multiples of 32×64"
    if not follows(weight):
        return "more than two of four consecutive inputs are not zero"
    return None


def _weights(model: Any) -> Iterator[tuple[NDArray[Any], int]]:
    """Yields the weight of every conv and linear layer of an ONNX model, and the dimension it sums over."""
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in REDUCED or len(node.input) < 2 or node.input[1] not in constants:
            continue
        array = numpy_helper.to_array(constants[node.input[1]])
        if array.ndim < 2:
            continue
        dim = REDUCED[node.op_type]
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            dim = 1
        yield array, dim
