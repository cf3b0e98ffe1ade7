"""``halpiee export``: a network as ONNX, compared with PyTorch before it gets its name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from halpiee import ranges
from halpiee.cli.options import SIZES, Ranged, examples, input_size, json_option
from halpiee.cli.output import answer, say
from halpiee.errors import UsageError
from latency._files import check_place

if TYPE_CHECKING:
    from halpiee.cli.networks import Network

__all__ = ["command"]


@click.command(
    "export",
    epilog=examples(
        "halpiee export runs/demo --out small.onnx",
        "halpiee export runs/demo --dense --out dense.onnx",
        "halpiee export --plan half.json --weights resnet50.safetensors --out half.onnx",
        "halpiee export torchvision/resnet18 --precision fp16 --out resnet18.onnx",
        "halpiee export runs/demo --format tensorrt --precision fp16 --batch 1:8:32 --out small.engine",
        "halpiee export small.onnx --format tensorrt --out small.engine --dry-run",
    ),
)
@click.argument("source", required=False)
@click.option("--format", "kind", default="onnx", show_default=True, type=click.Choice(["onnx", "tensorrt"]))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write; never overwritten."
)
@click.option("--dense", is_flag=True, help="A run's dense network instead of the pruned one.")
@click.option("--plan", type=click.Path(path_type=Path), help="What a plan leaves of its network.")
@click.option(
    "--trust-plan",
    is_flag=True,
    help="Let the plan name a package.module:function to call, of any arguments.",
)
@click.option(
    "--trust-run", is_flag=True, help="Let settings.json of a run from elsewhere name such functions."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Safetensors; with --plan of the dense or the compact one.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
    help="tf32 and bf16: engines only.",
)
@click.option("--half-io", is_flag=True, help="An fp16 file also takes and gives fp16.  [default: float32]")
@click.option(
    "--size", help=f"Image size of a MODEL or plan: {SIZES}.  [default: the plan's; of a MODEL 224]"
)
@click.option("--width", type=Ranged(ranges.Width), help="Width multiplier of a zoo network.")
@click.option(
    "--classes", type=Ranged(ranges.Classes), help="Classes of the network, if not its own default."
)
@click.option("--measure", is_flag=True, help="Time the file here, one thread, and write that into it.")
@click.option("--batch", help="Batches an engine takes: 8, or smallest:usual:largest, 1:8:32.  [default: 1]")
@click.option(
    "--builder-level", type=Ranged(ranges.Level), help="An engine's optimisation level.  [default: 3]"
)
@click.option(
    "--sparse", is_flag=True, help="An engine may use 2:4 sparse kernels where weights have the pattern."
)
@click.option(
    "--dry-run", is_flag=True, help="Say the trtexec line that builds the same engine; write nothing."
)
@click.option("--seed", default=0, type=Ranged(ranges.Seed), show_default=True)
@json_option
def command(
    source: str | None,
    kind: str,
    out: Path,
    dense: bool,
    plan: Path | None,
    trust_plan: bool,
    trust_run: bool,
    weights: Path | None,
    precision: Literal["fp32", "tf32", "fp16", "bf16"],
    half_io: bool,
    size: str | None,
    width: float | None,
    classes: int | None,
    measure: bool,
    batch: str | None,
    builder_level: int | None,
    sparse: bool,
    dry_run: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write a network as ONNX, or as a TensorRT engine, and prove that it computes what PyTorch computes.

    SOURCE is the folder of a run or a MODEL, for an engine also an ONNX file; with --plan it may be left out.
    """
    options = {"width": width, "classes": classes, "seed": seed}
    options |= {"trust_plan": trust_plan, "trust_run": trust_run}
    if kind == "tensorrt":
        if half_io or measure:
            raise UsageError(
                "--half-io and --measure are for ONNX files; leave them out; tools/bench_engine.py times engines"
            )
        from halpiee.cli.export_engine import export_engine

        def opened() -> Network:
            return _network(source, dense, plan, weights, precision, size, **options)

        export_engine(
            source,
            opened,
            out,
            precision=precision,
            batch=batch or "1",
            level=3 if builder_level is None else builder_level,
            sparse=sparse,
            dry_run=dry_run,
            seed=seed,
            as_json=as_json,
        )
        return
    if precision in ("tf32", "bf16") or batch or builder_level is not None or sparse or dry_run:
        raise UsageError(
            "--batch, --builder-level, --sparse, --dry-run and the precisions tf32 and bf16 are of engines; add "
            "--format tensorrt, or leave them out"
        )
    if half_io and precision != "fp16":
        raise UsageError("--half-io was asked of an fp32 file; add --precision fp16, or leave it out")
    check_place(out)
    network = _network(source, dense, plan, weights, precision, size, **options)
    from halpiee.deploy.onnx import export_onnx, stamp

    done = export_onnx(
        network.model,
        network.example,
        out,
        metadata=network.metadata,
        precision="fp16" if precision == "fp16" else "fp32",
        fp32_io=not half_io,
        seed=seed,
    )
    notes = [*network.notes, *done.notes]
    result: dict[str, Any] = {**asdict(done), "masked_rel_l2": network.masked_error, "notes": notes}
    if measure:
        import latency

        found = latency.measure(out)
        result["measured_us"] = found.median_us
        device = str(latency.environment()["device"])
        batch = str(done.fixed_batch or 1)
        stamp(
            out, {"measured_us": f"{found.median_us:.6g}", "batch": batch, "threads": "1", "device": device}
        )

    def show() -> None:
        pruned = (
            "" if network.masked_error is None else f"compact equals masked to {network.masked_error:.1e}, "
        )
        say(
            f"{out}: {done.size_bytes / 1e6:.1f} MB, {precision}, opset {done.opset}; {pruned}"
            f"relative L2 to PyTorch {done.rel_l2:.1e}, top-1 agrees on {done.top1_agreement:.1%}"
            + (f"; {result['measured_us']:.0f} µs on one thread" if measure else "")
        )
        for note in notes:
            say(note)

    answer(result, as_json, show)


def _network(
    source: str | None,
    dense: bool,
    plan: Path | None,
    weights: Path | None,
    precision: str,
    size: str | None,
    **options: Any,
) -> Network:
    """Opens what was named, and refuses what does not go together."""
    from halpiee.cli.networks import USUAL, check_run, from_model, from_plan, from_run, is_run

    shape = None if size is None else input_size(size)
    trust_plan, trust_run = options.pop("trust_plan"), options.pop("trust_run")
    if plan is not None:
        if dense or (source is not None and is_run(source)):
            raise UsageError(
                "--plan was asked of a run, which has its own; leave --plan out, or name a MODEL"
            )
        if options["width"] is not None or options["classes"] is not None:
            raise UsageError("--width and --classes are in the plan; leave them out beside --plan")
        return from_plan(
            plan,
            shape,
            model=source,
            weights=weights,
            precision=precision,
            seed=options["seed"],
            trust=trust_plan,
        )
    if source is None:
        raise UsageError("nothing to export was named; give the folder of a run, a MODEL, or --plan FILE")
    if Path(source).is_dir():
        check_run(Path(source))
        own = {"weights": weights, "size": size, "width": options["width"], "classes": options["classes"]}
        for name, value in own.items():
            if value is not None:
                raise UsageError(
                    f"--{name} was asked of {source}, a run, which has its own; leave --{name} out"
                )
        if dense and not (Path(source) / "dense.safetensors").is_file():
            raise UsageError(
                f"--dense was asked of {source}, which trained no dense network (--no-baseline) and holds the pruned "
                "one only; leave --dense out, or train it again with --baseline in another --out"
            )
        return from_run(Path(source), dense=dense, precision=precision, trust=trust_run)
    if "/" in source and ":" not in source and not source.startswith(("torchvision/", "timm/")):
        raise UsageError(
            f"{source} was to be exported, and there is no such folder; name the folder of a run, or a MODEL"
        )
    if dense:
        raise UsageError(
            f"--dense was asked of {source}, and only a run has a dense network beside; leave it out"
        )
    return from_model(source, shape or USUAL, weights=weights, **options)
