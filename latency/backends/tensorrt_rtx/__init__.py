"""TensorRT for RTX: engines that are built on a machine without a GPU, for a list of compute capabilities.

The library has TensorRT's interface, and everything here but the differences is TensorRT's backend. It times no tactics
while it builds: there is no timing cache, and kernels are made at the first run on the target. So a table measured with
TensorRT is none for it, which the backend's name in a profile says. Kernels that were made are kept in a file beside
the engine (``net.engine.kernels``); on the target the library's own strategy captures CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from latency.backends import Way, backend
from latency.backends.tensorrt import TensorRT
from latency.backends.tensorrt.builder import CAPABILITIES
from latency.backends.tensorrt.engine import ENGINE_FILES
from latency.errors import HalpieeError
from latency.files import write


@backend("tensorrt-rtx")
class TensorRTRTX(TensorRT):
    """Ops and networks on TensorRT for RTX; arguments as TensorRT's, without a timing cache."""

    module, extra = "tensorrt_rtx", "rtx"
    remark = f"; builds for {', '.join(map(str, CAPABILITIES))} without a GPU"
    ways = (Way("engine", ENGINE_FILES, usual=True), Way("rtx", (".onnx",)))

    @classmethod
    def context(cls, trt: Any, engine: Any, path: Path | None = None) -> tuple[Any, Callable[[], None]]:
        """Returns the context of an engine: with the kernels of earlier runs, and graphs by the library's strategy.

        Returns:
            The context, and what writes its kernels beside the engine once it has run.
        """
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        kernels = None if path is None else path.with_name(f"{path.name}.kernels")
        cache = config.create_runtime_cache()
        if kernels is not None and kernels.is_file():
            cache.deserialize(kernels.read_bytes())
        config.set_runtime_cache(cache)

        def keep() -> None:
            if kernels is not None:
                with suppress(HalpieeError):  # a folder that cannot be written costs time at the next start
                    write(kernels, bytes(cache.serialize()), overwrite=True)

        return engine.create_execution_context(runtime_config=config), keep

    @classmethod
    def kept_beside(cls, path: Path) -> dict[str, Any]:
        """Returns nothing: no tactics are timed."""
        del path
        return {}
