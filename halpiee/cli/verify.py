"""``halpiee verify``: an engine that was built elsewhere, run on this GPU beside its ONNX file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import answer, say
from halpiee.options import described, option
from halpiee.shared_options import Seeded


@dataclass(frozen=True, kw_only=True)
class Verify(Seeded, Answered):
    """The engine that is run, and what it is compared with."""

    file: Path = field(
        metadata=described("A TensorRT engine, its .json beside it.", argument=True, metavar="FILE")
    )
    onnx: Path | None = option(
        None, "The ONNX file that it was built from.", unset="the one beside it that its .json names"
    )
    trust_engine: bool = option(
        False, "Load an engine that was built on another machine: engines are executable."
    )


@verb(
    "verify",
    Verify,
    examples=(
        "halpiee verify small.engine --trust-engine",
        "halpiee verify small.engine --onnx small.onnx --json",
    ),
)
def command(given: Verify) -> None:
    """Run an engine on this GPU, compare it with its ONNX file in ONNX Runtime, and write that beside it."""
    from halpiee.deploy.tensorrt import prove_engine

    done = prove_engine(given.file, given.onnx, trust=given.trust_engine, seed=given.seed)
    text = (
        f"{given.file}: relative L2 to the ONNX file {done.rel_l2:.1e} at batches "
        f"{', '.join(map(str, done.batches))}, on {done.device} with version {done.tensorrt}"
    )
    answer(asdict(done), given.as_json, lambda: say(text))
