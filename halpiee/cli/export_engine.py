"""The engine side of ``halpiee export``: an ONNX file first, then the TensorRT engine of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee.cli.output import answer, say
from halpiee.errors import OutputInUseError, UsageError

if TYPE_CHECKING:
    from halpiee.cli.networks import Network

__all__ = ["export_engine"]


def export_engine(
    source: str | None,
    opened: Callable[[], Network],
    out: Path,
    *,
    precision: str,
    batch: str,
    level: int,
    sparse: bool,
    dry_run: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Writes the engine of an ONNX file, or of a network whose ONNX file is written beside it.

    Args:
        source: an ONNX file, or what ``opened`` opens.
        opened: returns the network.
        out: the engine.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``bf16``; an ONNX file has its own.
        batch: batches that the engine takes: ``8`` or ``1:8:32``.
        level: builder optimisation level.
        sparse: whether 2:4 sparse kernels may be used.
        dry_run: say the equivalent ``trtexec`` line, and build nothing.
        seed: of the random inputs that are compared.
        as_json: whether the answer is one JSON object.
    """
    from halpiee.deploy.tensorrt import Batches, build_engine, trtexec_line
    from latency._files import check_place
    from latency.backends.tensorrt_builder import Settings

    batches = Batches.of(batch)
    settings = Settings(level=level, tf32=precision == "tf32", sparse=sparse)
    given = Path(source) if source is not None and source.endswith(".onnx") else None
    onnx = given or out.with_suffix(".onnx")
    if onnx == out:
        raise UsageError(
            f"--out {out} is the name of an ONNX file; name the engine, such as {out.stem}.engine"
        )
    if dry_run:
        name, shape = _input_of(given) if given else ("input", tuple(opened().example[0].shape[1:]))
        line = trtexec_line(onnx, out, batches=batches, shape=shape, settings=settings, name=name)
        answer({"onnx": str(onnx), "engine": str(out), "trtexec": line}, as_json, lambda: say(line))
        return
    check_place(out, overwrite=True)
    if given is None and onnx.exists():
        raise OutputInUseError(
            f"{onnx}, which would go beside {out}, exists; take it (`halpiee export {onnx} --format tensorrt "
            f"--out {out}`), or choose another --out"
        )
    _look_for_a_gpu()
    network = None if given else opened()
    notes = [] if network is None else [*network.notes]
    reference = None if network is None else _write_onnx(network, onnx, precision, seed, notes)
    done = build_engine(onnx, out, batches=batches, settings=settings, reference=reference, seed=seed)

    def show() -> None:
        for note in notes:
            say(note)
        how = f"built ({done.why})" if done.built else "there already, and fits"
        say(
            f"{out}: {how}, {done.size_bytes / 1e6:.1f} MB, TensorRT {done.tensorrt} on {done.device}; relative L2 to "
            f"the ONNX file {done.rel_l2:.1e} at batches {', '.join(map(str, done.batches))}"
        )
        say(f"{onnx} is the artefact; the engine is rebuilt from it where TensorRT or the GPU is another")

    answer({**asdict(done), "onnx": str(onnx), "notes": notes}, as_json, show)


def _look_for_a_gpu() -> None:
    """Refuses before the long work where there is no TensorRT or no GPU."""
    from latency.backends.cuda import open_cuda
    from latency.backends.tensorrt_library import import_tensorrt

    import_tensorrt()
    open_cuda()


def _write_onnx(
    network: Network, onnx: Path, precision: str, seed: int, notes: list[str]
) -> Callable[[dict[str, Any]], list[Any]] | None:
    """Writes the artefact; returns what computes its outputs where ONNX Runtime's CPU cannot (bfloat16).

    What should be known of the file is added to ``notes``.
    """
    from halpiee.deploy.onnx import converted, export_onnx

    if precision != "bf16":
        half: Literal["fp32", "fp16"] = "fp16" if precision == "fp16" else "fp32"
        done = export_onnx(
            network.model, network.example, onnx, metadata=network.metadata, precision=half, seed=seed
        )
        notes += done.notes
        return None
    import torch

    from halpiee.deploy.metadata import write_metadata
    from halpiee.deploy.verify import outputs, reference
    from latency._files import write

    proto = converted(network.model, network.example, precision="bf16")
    write_metadata(proto, {**network.metadata, "precision": "bf16"})
    write(onnx, proto.SerializeToString())
    trusted = reference(network.model)
    return lambda inputs: outputs(trusted, tuple(torch.from_numpy(x) for x in inputs.values()))


def _input_of(onnx: Path) -> tuple[str, tuple[int, ...]]:
    from latency.backends.onnx_file import check_file

    value = check_file(onnx).graph.input[0]
    return value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
