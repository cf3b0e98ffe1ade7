"""What ``halpiee bench`` is given: names with ``@HOW`` behind them, opened one batch size after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError

if TYPE_CHECKING:
    from halpiee.cli.networks import Network
    from halpiee.deploy.runners import Precision, Runner

__all__ = ["Contestant", "contestants"]

PROVIDERS = ("cpu", "cuda", "tensorrt")
WAYS = ("eager", "compile", "onnx")
ENGINES = (".engine", ".plan", ".trt")


@dataclass(frozen=True)
class Contestant:
    """One network to be timed.

    Attributes:
        name: in the table.
        how: a provider of ONNX Runtime, ``engine``, or a way to run a module.
        file: an ONNX file or an engine, or
        network: a module.
        shape: (channels, height, width) where the file leaves them open.
        metadata: what the file says of itself.
        trust: whether an engine of unknown origin is loaded.
    """

    name: str
    how: str
    file: Path | None = None
    network: Network | None = None
    shape: tuple[int, ...] | None = None
    metadata: dict[str, str] | None = None
    trust: bool = False

    def runner(self, *, batch: int, threads: int, precision: Precision | None, device: str) -> Runner:
        """Builds what is called."""
        from halpiee.deploy.runners import engine_runner, module_runner, onnx_runner

        if self.network is None:
            assert self.file is not None
            if self.how == "engine":
                return engine_runner(self.file, batch=batch, trust=self.trust)
            return onnx_runner(
                self.file,
                provider=self.how,
                batch=batch,
                shape=self.shape,
                threads=threads,
                precision=precision,
            )
        model, first = self.network.model, self.network.example
        example = tuple(x[:1].expand(batch, *x.shape[1:]).clone() for x in first)
        if self.how == "onnx":
            return onnx_runner(
                (model, example), batch=batch, threads=threads, precision=precision or "fp32", name=self.name
            )
        return module_runner(
            model,
            example,
            compiled=self.how == "compile",
            precision=precision or "fp32",
            device=device,
            threads=threads,
        )

    @property
    def notes(self) -> list[str]:
        """What should be known of the network beside its times."""
        found = [] if self.network is None or self.network.unclaimed is None else [self.network.unclaimed]
        untrained = self.network is not None and self.network.untrained
        if untrained or (self.metadata or {}).get("weights") == "initial":
            found.append(f"{self.name} has its initial weights: its times hold, its outputs mean nothing")
        return found

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that a file takes, as it says itself; None: any."""
        text = (self.metadata or {}).get("fixed_batch", "")
        return int(text) if self.network is None and text.isdecimal() else None

    def predicted_us(self, batch: int, threads: int) -> float | None:
        """Returns the latency that was predicted, if it was for this device, runtime, batch and number of threads."""
        import latency

        found = self.metadata or {}
        if self.how not in ("cpu", "onnx"):
            return None
        same = found.get("device") == latency.environment()["device"]
        same &= found.get("backend", "onnxruntime") == "onnxruntime"
        if not same or (found.get("batch"), found.get("threads")) != (str(batch), str(threads)):
            return None
        return float(found["predicted_us"]) if "predicted_us" in found else None


def contestants(texts: Sequence[str], against: str | None, **options: Any) -> tuple[list[Contestant], str]:
    """Opens everything that was named; returns it, and the name that ratios are taken against.

    Args:
        texts: as typed: ``FILE``, ``RUN`` or ``MODEL``, each with or without ``@HOW``.
        against: a name; ``dense`` is looked for beside the first run or file where none is named so.
        **options: shape, width and classes of a MODEL; trust in engines, plans and runs.

    Raises:
        UsageError: no such file, run, model or name.
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


def _open(texts: Sequence[str], names: Sequence[str], options: dict[str, Any]) -> list[Contestant]:
    return [_contestant(text, name, options) for text, name in zip(texts, names, strict=True)]


def _contestant(text: str, name: str, options: dict[str, Any], *, dense: bool = False) -> Contestant:
    from halpiee.cli.networks import from_model, from_plan, from_run, is_run

    what, how = _split(text)
    path = Path(what)
    if path.suffix in ENGINES:
        if how is not None:
            raise UsageError(f"{text} was asked; an engine runs one way only, leave @{how} out")
        if not path.is_file():
            raise UsageError(f"{what} was asked for, and there is no such file; check the path")
        return Contestant(name, "engine", file=path, trust=options["trust"]["engine"])
    if path.suffix == ".onnx":
        if how is not None and how not in PROVIDERS:
            raise UsageError(f"{text} was asked; an ONNX file runs @{', @'.join(PROVIDERS)}")
        from halpiee.deploy.metadata import read_metadata

        return Contestant(name, how or "cpu", file=path, shape=options["shape"], metadata=read_metadata(path))
    if how is not None and how not in WAYS:
        raise UsageError(f"{text} was asked; a run or a model runs @{', @'.join(WAYS)}")
    if path.suffix == ".json" and path.is_file():
        network = from_plan(path, options["shape"], trust=options["trust"]["plan"])
        return Contestant(name, how or "eager", network=network, metadata=network.metadata)
    if path.is_dir() or is_run(what):
        network = from_run(path, dense=dense, trust=options["trust"]["run"])
        return Contestant(name, how or "eager", network=network, metadata=network.metadata)
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
    return Contestant(name, how or "eager", network=network)


def _dense_beside(texts: Sequence[str], options: dict[str, Any]) -> Contestant:
    """Returns the dense network of the first run that is named, or ``dense.onnx`` beside the first file."""
    from halpiee.cli.networks import is_run

    for text in texts:
        what, how = _split(text)
        if is_run(what):
            return _contestant(text, "dense", options, dense=True)
        beside = Path(what).with_name("dense.onnx")
        if what.endswith(".onnx") and beside.is_file():
            return _contestant(str(beside) + (f"@{how}" if how else ""), "dense", options)
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
