"""The networks that bench times: each opened from a file, a run, a plan or a MODEL, with the way it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee.errors import UsageError
from halpiee.inputs import Input, Shape

if TYPE_CHECKING:
    from halpiee.cli.networks import Network
    from latency.backends import Backend, Runner, Way

    Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Timed:
    """One network to be timed."""

    name: str  # in the table
    backend: str  # the runtime that it runs on
    way: Way  # how it runs there, such as a provider of ONNX Runtime
    file: Path | None = None  # an ONNX file or an engine, or
    network: Network | None = None  # a module
    # (channels, height, width), or inputs by name, where the file leaves them open
    shape: Shape | None = None
    metadata: dict[str, str] | None = None  # what the file says of itself
    trust: bool = False  # whether an engine of unknown origin is loaded

    def runner(self, *, batch: int, threads: int, precision: Precision | None, device: str) -> Runner:
        """Returns the runner, a context manager, with the circumstances of its runtime."""
        from latency.backends import BACKENDS, load

        settings = dict(self.way.settings)
        if self.network is not None and ".onnx" not in BACKENDS[self.backend].files:
            settings |= {"device": device, "precision": precision or "fp32"}
        backend = load(self.backend, threads=threads, settings=settings)
        made = self._made(backend, batch, precision)
        made.circumstances = backend.environment()
        return made

    def _made(self, backend: Backend, batch: int, precision: Precision | None) -> Runner:
        if self.network is None:
            made = backend.network(
                self.file, batch=batch, shape=_open_sizes(self.shape), trust=self.trust, name=str(self.file)
            )
            if precision is not None and self.file_ending == ".onnx":
                check_precision(self.file, precision)
            return made
        from halpiee.inputs import at_batch

        model, first = self.network.model, self.network.example
        example = at_batch(first, batch)
        if ".onnx" in backend.files:
            from halpiee.deploy.onnx import converted

            given = (
                converted(model, example, precision=precision) if precision not in (None, "fp32") else model
            )
            return backend.network(given, example if given is model else None, batch=batch, name=self.name)
        return backend.network(model, example)

    @property
    def file_ending(self) -> str:
        """Ending of its file; empty where it is a module."""
        return self.file.suffix if self.file is not None else ""

    @property
    def notes(self) -> list[str]:
        """Notes on the network."""
        found = [] if self.network is None or self.network.unclaimed is None else [self.network.unclaimed]
        untrained = self.network is not None and self.network.untrained
        if untrained or (self.metadata or {}).get("weights") == "initial":
            found.append(f"{self.name} has its initial weights: its times hold, its outputs mean nothing")
        return found

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the file takes, by its metadata; None: any."""
        text = (self.metadata or {}).get("fixed_batch", "")
        return int(text) if self.network is None and text.isdecimal() else None

    def predicted_us(self, batch: int, threads: int) -> float | None:
        """Returns the latency that was predicted, if it was for this device, runtime, batch and number of threads."""
        import latency

        found = self.metadata or {}
        if self.way.settings or found.get("backend", "onnxruntime") != self.backend:
            return None
        same = found.get("device") == latency.environment()["device"]
        if not same or (found.get("batch"), found.get("threads")) != (str(batch), str(threads)):
            return None
        if self.file_ending == ".onnx" and found.get("precision") != "int8" and is_quantised(self.file):
            return None  # the metadata are of the file before its quantisation
        return float(found["predicted_us"]) if "predicted_us" in found else None

    def predicted_interval_us(self, batch: int, threads: int) -> tuple[float, float] | None:
        """Returns the range that holds the latency of 90 % of networks so predicted, where the file says one."""
        found = self.metadata or {}
        ends = [found.get(f"predicted_{end}_us") for end in ("low", "high")]
        if self.predicted_us(batch, threads) is None or ends[0] is None or ends[1] is None:
            return None
        return float(ends[0]), float(ends[1])


def _open_sizes(shape: Shape | None) -> Any:
    """Returns the sizes of a file's open dimensions, as backends take them."""
    named = {one.name: one.shape for one in shape or () if isinstance(one, Input)}
    return named or shape


def is_quantised(file: Path | None) -> bool:
    """Whether an ONNX file holds integer arithmetic or quantisation."""
    from latency.backends.onnxruntime.model import check_file

    return any(
        re.search("Quantize|Integer|^QLinear", node.op_type) for node in check_file(str(file)).graph.node
    )


def check_precision(file: Path | None, precision: str) -> None:
    """Refuses a precision that the weights of an ONNX file do not have."""
    from latency.backends.onnxruntime.model import check_file, weight_precision

    found = weight_precision(check_file(str(file)))
    if found != precision:
        raise UsageError(
            f"--precision {precision} was asked, and {file} holds {found} weights; leave --precision out, or export "
            f"it again with `halpiee export … --precision {precision}`"
        )


def open_all(texts: Sequence[str], against: str | None, **options: Any) -> tuple[list[Timed], str]:
    """Opens every network that was named; returns them, and the name that ratios are taken against.

    ``dense`` is looked for beside the first run or file where none is named so.
    """
    short = [_short(text) for text in texts]
    names = [text if short.count(name) > 1 else name for text, name in zip(texts, short, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} was named twice; name every network once")
    base = against or names[0]
    if base == "dense" and "dense" not in names:
        return [_dense_beside(texts, options), *_open(texts, names, options)], "dense"
    if base not in names:
        raise UsageError(f"--against {base} was asked; the files are named {', '.join(names)}")
    return _open(texts, names, options), base


def _open(texts: Sequence[str], names: Sequence[str], options: dict[str, Any]) -> list[Timed]:
    return [_opened(text, name, options) for text, name in zip(texts, names, strict=True)]


def _opened(text: str, name: str, options: dict[str, Any], *, dense: bool = False) -> Timed:
    from halpiee.cli.networks import from_model, from_plan, from_run, is_run
    from latency.backends import ending

    what, how = _split(text)
    path = Path(what)
    if (end := ending(path)) is not None:
        backend, way = _way(text, end, how, path)
        if end != ".onnx" and not path.is_file():
            raise UsageError(f"{what} was asked for, and there is no such file; check the path")
        if end != ".onnx":
            return Timed(name, backend, way, file=path, trust=options["trust"]["engine"])
        from latency.backends.onnxruntime.model import read_metadata

        shape, metadata = options["shape"], read_metadata(path)
        return Timed(name, backend, way, file=path, shape=shape, metadata=metadata)
    backend, way = _way(text, "module", how)
    if path.suffix == ".json" and path.is_file():
        network = from_plan(path, options["shape"], trust=options["trust"]["plan"])
        return Timed(name, backend, way, network=network, metadata=network.metadata)
    if path.is_dir() or is_run(what):
        network = from_run(path, dense=dense, trust=options["trust"]["run"])
        return Timed(name, backend, way, network=network, metadata=network.metadata)
    if path.exists():
        raise UsageError(
            f"{what} was asked for and is neither an ONNX file (.onnx), a plan (.json) nor the folder "
            "of a run; check the path"
        )
    if "/" in what and not what.startswith(("torchvision/", "timm/")):
        raise UsageError(f"{what} was asked for, and there is no such file or folder; check the path")
    network = from_model(
        what, options["shape"] or (3, 224, 224), width=options["width"], classes=options["classes"]
    )
    return Timed(name, backend, way, network=network)


def _way(text: str, reads: str, how: str | None, path: Path | None = None) -> tuple[str, Way]:
    """Returns the backend and the way that ``@how`` means for a module or a kind of file."""
    from latency.backends import way_of, ways_of

    found = way_of(reads, how, path if reads != ".onnx" else None)
    if found is not None:
        return found
    known = ways_of(reads)
    if set(known) == {"engine"}:
        raise UsageError(f"{text} was asked; an engine runs one way only, leave @{how} out")
    what = (
        "a run or a model" if reads == "module" else "an ONNX file" if reads == ".onnx" else f"a {reads} file"
    )
    raise UsageError(f"{text} was asked; {what} runs @{', @'.join(known)}")


def _dense_beside(texts: Sequence[str], options: dict[str, Any]) -> Timed:
    """Returns the dense network of the first run that is named, or ``dense.onnx`` beside the first file."""
    from halpiee.cli.networks import is_run

    for text in texts:
        what, how = _split(text)
        if is_run(what):
            return _opened(text, "dense", options, dense=True)
        beside = Path(what).with_name("dense.onnx")
        if what.endswith(".onnx") and beside.is_file():
            return _opened(str(beside) + (f"@{how}" if how else ""), "dense", options)
    raise UsageError(
        "--against dense was asked; none of the files is named dense, none is a run, and no dense.onnx lies beside "
        "them; name the dense network's file too"
    )


def _split(text: str) -> tuple[str, str | None]:
    what, mark, how = text.rpartition("@")
    return (what, how) if mark and "/" not in how else (text, None)


def _short(text: str) -> str:
    what, how = _split(text)
    path = Path(what)
    name = path.stem if path.suffix in (".onnx", ".json") else path.name
    return f"{name}@{how}" if how else name
