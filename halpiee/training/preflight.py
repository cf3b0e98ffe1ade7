"""Everything that can be wrong with a run is looked for before the long work, and before anything is written."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import latency
from halpiee.advice import check_covers, command, contents_of
from halpiee.data.data import Summary
from halpiee.deploy.target import Target
from halpiee.errors import DataError, HalpieeError, MissingError, OutputInUseError, ProfileError, UsageError
from halpiee.inputs import Input, Shape, example_of, parse_inputs, shapes_of, spelled
from halpiee.limits import parse_also, whole_groups
from halpiee.methods.allocator import bind
from halpiee.methods.one_shot import recipe as one_shot
from halpiee.methods.one_shot import stages
from halpiee.methods.registry import METHODS
from halpiee.saliency.registry import named
from halpiee.structure.groups import Structure
from halpiee.structure.trace import trace
from halpiee.tasks import named as task_named
from halpiee.training.build import Material, budget_of, initial, make_optimizer, method_of, network, units_of
from halpiee.training.checkpoint import FILE, read_values, save_json, save_settings, settings_of
from halpiee.training.config import Settings
from halpiee.training.job import PROFILE, Run, Silent, Talk, holds_cells
from halpiee.training.ranks import ALONE, PeerError, Ranks, code
from halpiee.training.record import Metrics
from halpiee.training.weights import read_weights
from halpiee.zoo import resolve
from latency.backends.torch.modules import tensors_in
from latency.files import FolderLock, contents, remove_leftovers

LEAST = 5
"""Images to solve layers from; one of them judges the ridge."""


def open_run(
    settings: Settings, folder: Path, talk: Talk, *, resume: bool = False, ranks: Ranks = ALONE
) -> Run:
    """Checks everything that can be checked in two seconds, then begins the run; refused, it leaves no trace.

    What a process that died left half written in the folder is removed.

    ``resume`` says that the run is there already; of several ``ranks`` the first one checks.

    Raises:
        UsageError: unknown model, bad budget, a profile of another device, settings that differ on resume, ranks that
            do not agree.
        DataError: data that is missing or unreadable.
        OutputInUseError: the folder holds something, and ``resume`` was not asked; or another run writes it.
        WriteError: the folder cannot be made or written.
        MissingError: the device is not there.
    """
    check_ranks(settings, ranks)
    lock = FolderLock(folder) if ranks.first else None
    try:
        settings = ranks.once(lambda: check_folder(settings, folder, resume=resume))
        try:
            check_settings(settings)  # every rank: building a method asks the others
        except HalpieeError as error:
            if ranks.first:
                raise
            raise PeerError(
                f"rank {ranks.rank} of {ranks.count} ends, as rank 0 did", error.exit_code
            ) from error
        begun_here = ranks.once(lambda: _begin(settings, folder))
    except BaseException:
        if lock is not None:
            lock.undo()
        raise
    if lock is not None:
        lock.close()
    made = () if lock is None else tuple(lock.made)
    return Run(settings, folder, talk if ranks.first else Silent(), begun_here, made, ranks)


def _begin(settings: Settings, folder: Path) -> bool:
    """Writes the settings, unless they are there as they are; returns whether there were none."""
    if not (folder / FILE).is_file():
        save_settings(folder, settings)
        return True
    stored = read_values(folder)
    lowered = {name: getattr(settings, name) for name in (*LOWERED, "lowered")}
    if settings.lowered != tuple(stored.get("lowered", ())):
        save_json(folder / FILE, {**stored, **lowered})  # under the seal that it has
    return False


def check_ranks(settings: Settings, ranks: Ranks) -> None:
    """Refuses ranks that do not train the same, and a step that does not divide among them.

    Raises:
        UsageError: what differs, or the batch size that was asked and one that divides.
    """
    parts = ranks.count * settings.accumulate
    if settings.batch_size % parts:
        whole = math.ceil(settings.batch_size / parts) * parts
        raise UsageError(
            f"--batch-size {settings.batch_size} was asked of {ranks.count} processes and {settings.accumulate} parts "
            f"of a step; give one that they divide, such as {whole}"
        )
    if ranks.count > 1:
        profile = Path(settings.profile) if settings.profile is not None else None
        measured = hashlib.sha256(profile.read_bytes()) if profile is not None and profile.is_file() else None
        facts = {"code": code(), "settings": settings.digest, "torch": torch.__version__}
        ranks.check_same({**facts, "profile": "" if measured is None else measured.hexdigest()})


LOWERED = ("lr", "clip")
"""What --resume takes another value of, a lower one: what a training that diverged needs."""


def check_folder(settings: Settings, folder: Path, *, resume: bool) -> Settings:
    """Returns the settings that the run goes on with; refuses a folder that holds something else than this very run.

    Raises:
        OutputInUseError: the folder holds something, and ``resume`` was not asked.
        UsageError: ``resume`` was asked of no run, or of one with other settings.
    """
    remove_leftovers(folder)
    stored = folder / FILE
    if stored.is_file():
        if not resume:
            raise OutputInUseError(
                f"--out {folder} already holds a run; add --resume to continue it, or choose another folder"
            )
        before = settings_of(folder, read_values(folder))
        was, now = before.as_dict(), settings.as_dict()
        changed = [k for k in now if k != "lowered" and was.get(k) != now[k]]
        lower = all(k in LOWERED and 0 < now[k] < (was[k] or math.inf) for k in changed)
        if changed and (not lower or (folder / "report.json").is_file()):
            told = "; ".join(f"{k}: {was[k]!r} then, {now[k]!r} now" for k in changed)
            raise UsageError(
                f"--resume of {folder} was asked with other settings ({told}); resume with the same ones (a lower --lr "
                "or --clip is taken until the run is finished), or choose another folder"
            )
        said = [
            f"resumed with --{k} {now[k]:g} where it was {was[k]:g}: not the training that was typed"
            for k in changed
        ]
        return replace(settings, lowered=(*before.lowered, *said))
    if resume:
        raise UsageError(f"--resume was asked, but {folder} holds no run; leave --resume out to start one")
    if folder.is_dir() and set(contents(folder)) - ({PROFILE} if holds_cells(folder / PROFILE) else set()):
        raise OutputInUseError(
            f"--out {folder} is not empty; choose a folder that is empty or does not exist yet"
        )
    return settings


def check_settings(settings: Settings) -> None:
    """Refuses what cannot work: model, data, device, weights, profile.

    Raises:
        UsageError: an unknown model or backend, weights or a profile that are not there.
        DataError: data that is missing or unreadable.
        MissingError: the device is not there.
        ProfileError: a profile of another device, or one that lacks ops of this network.
    """
    s = settings
    resolve(s.model)
    task = task_named(s.task)
    summary = task.source(s.data, s.size).check(bad=s.loading.bad_images)
    if summary.shape is not None and summary.n_classes is not None:
        check_images(s, summary.shape, summary.n_classes)
    if summary.n_train is not None and s.method == "iee" and s.from_run is None:
        s.cycle_steps(max(1, summary.n_train // s.batch_size) * s.epochs)
    if s.masks.criterion is not None:
        named(s.masks.criterion)
    if s.masks.asked:
        _check_masks(s, summary)
    Target(s.backend)
    if s.device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("--device cuda was asked, and no CUDA device is there; use --device cpu")
    if ":" in s.device and int(s.device.partition(":")[2]) >= torch.cuda.device_count():
        raise MissingError(
            f"--device {s.device} was asked, and there are {torch.cuda.device_count()} CUDA devices; count from cuda:0"
        )
    Metrics(Path(), s.track)
    if s.from_run is not None and not (Path(s.from_run) / "pruned.safetensors").is_file():
        raise UsageError(
            f"--from-run {s.from_run} was asked, and there is no finished run in it (no pruned.safetensors); give the "
            "folder of one"
        )
    if s.precision == "fp16" and (s.device == "cpu" or not torch.cuda.is_available()):
        raise MissingError(
            "--precision fp16 was asked, and it trains on CUDA devices only; give bf16, or fp32"
        )
    if s.accumulate > 1 and summary.n_train is not None and summary.n_train < s.batch_size:
        raise UsageError(
            f"--accumulate {s.accumulate} was asked of steps of {s.batch_size} images, and --data {s.data} has "
            f"{summary.n_train}; give a smaller --batch-size"
        )
    if s.weights is not None:
        read_weights(s.weights, s.model)
    if s.distill not in (None, "dense"):
        read_weights(s.distill, s.model, option="--distill")
    if METHODS[s.method].kind == "cut" and (summary.n_train or LEAST) < LEAST:
        raise DataError(
            f"--data {s.data} has {summary.n_train} training images, and layers are solved from at least {LEAST}; give "
            "data with more, labels are not needed"
        )
    for text in s.also:
        parse_also(text)
    if (s.protect or s.only) and summary.shape is not None and summary.n_classes is not None:
        listing = command("explain", s.model, shape=summary.shape, width=s.width, classes=summary.n_classes)
        whole_groups(trace(network(s, summary.n_classes), (torch.zeros(1, *summary.shape),)), s, listing)
    if s.profile is not None:
        _check_profile(Path(s.profile), s, summary)


def check_images(settings: Settings, shape: Shape, classes: int) -> None:
    """Refuses a network that does not take images of a shape [C, H, W] or the inputs, or has outputs for other classes.

    Raises:
        DataError: what the network was given, and what it said or returned.
        UsageError: weights of another network.
    """
    s = settings
    model = initial(s, classes).eval()
    kind = "inputs of" if isinstance(shape[0], Input) else "images of"
    images = f"{kind} {spelled(shape)} (channels × height × width)"
    asked = parse_inputs(s.inputs) or shape
    sizes = [[x.shape for x in tensors_in(example_of(model, one))] for one in (asked, shape)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"--input {' --input '.join(s.inputs)} was asked, and --data {s.data} gives {images}; ask for these, or "
            "leave --input out"
        )
    try:
        with torch.no_grad():
            found = model(*example_of(model, shape, 2))
    except Exception as error:
        raise DataError(
            f"--data {s.data} has {images}, which {s.model} does not take ({' '.join(str(error).split())[:200]}); give "
            "data of as many channels, another --size, or another MODEL"
        ) from error
    if s.masks.value == "measured" and not isinstance(found, torch.Tensor):
        raise UsageError(
            f"--value measured was asked of --task {s.task}, whose network gives {len(found)} tensors; it compares "
            "logits: leave it out"
        )
    if said := task_named(s.task).wrong(found, classes, shapes_of(shape)[0]):
        raise DataError(
            f"--data {s.data} has {classes} classes, and {s.model} answers two images with {said}"
        )


def check_cells(
    profile: latency.Profile,
    structure: Structure,
    settings: Settings,
    shape: Shape,
    *,
    classes: int | None = None,
) -> None:
    """Refuses a profile that cannot price a conv or linear layer of the network; see ``check_covers``."""
    ops = [timed.op for timed in structure.ops]
    measuring = _measuring(Target.of_profile(profile), settings, shape, classes)
    check_covers(profile, str(settings.profile), ops, measuring)


def _measuring(target: Target, settings: Settings, shape: Shape, classes: int | None) -> str:
    """Returns the command that profiles a network on a target, as far as it hangs on these."""
    more: dict[str, Any] = {"backend": target.backend if target.backend != Target().backend else None}
    more |= {n.replace("_", "-"): target.settings.get(n) for n in ("device", "precision", "channels_last")}
    size: dict[str, Any] = {"shape": shape, "width": settings.width, "classes": classes}
    return command("profile", settings.model, **size, batch=settings.batch, threads=settings.threads, **more)


def _check_masks(settings: Settings, summary: Summary) -> None:
    """Refuses a sparsity, a pattern or an interval that the method would refuse after long work."""
    s = settings
    if summary.n_classes is None or s.method == "small-dense":
        return
    model = network(s, summary.n_classes)
    example = None if summary.shape is None else example_of(model, summary.shape)
    units = units_of(model, s, example)
    if s.masks.mask is None:
        bind(budget_of(s), units, None)
    total = 1 if summary.n_train is None else max(1, summary.n_train // s.batch_size) * s.epochs
    last = max(s.masks.rewind or 0, s.masks.at)
    if summary.n_train is not None and last > total:
        option = "rewind" if s.masks.rewind else "at"
        raise UsageError(
            f"--{option} {last} was asked of a training of {total} steps; give a step up to that, or train longer"
        )
    if METHODS[s.method].kind == "rewind":
        list(stages(budget_of(s), units, None, s.masks.rounds or 1))
        return
    if METHODS[s.method].kind == "once":
        own = getattr(METHODS[s.method].load().options(), "rounds", 1)
        one_shot(budget_of(s), rounds=own if s.masks.rounds is None else s.masks.rounds, at=s.masks.at)
        return
    if summary.n_train is None or example is None:
        return
    material = Material(lambda: trace(model, example), lambda *_: [], summary.n_classes, example)
    make = method_of(s, model, total, material)
    make(model, make_optimizer(model, s)).detach()


def _check_profile(path: Path, settings: Settings, summary: Summary) -> None:
    s = settings
    if not path.is_file():
        shape = summary.shape or (3, s.size or 224, s.size or 224)
        making = _measuring(Target(), s, shape, summary.n_classes)
        raise UsageError(
            f"--profile {path} was asked for, and there is no such file; make it with `{making} --out {path}`"
        )
    profile = latency.Profile.load(path)
    if not profile.cells:
        raise ProfileError(
            f"--profile {path} {contents_of(profile)}; the `halpiee profile {s.model} … --out {path}` that began it "
            "continues it"
        )
    target = Target.of_profile(profile)
    if s.backend not in (Target().backend, target.backend):
        raise UsageError(
            f"--backend {s.backend} was asked, and --profile {path} was measured on {target.backend}; leave --backend "
            "out, or the profile"
        )
    profile.require(replace(target, threads=s.threads).environment)
    if summary.shape is not None and summary.n_classes is not None:  # else only loading the data tells
        example = torch.zeros(s.batch, *summary.shape)
        structure = target.of(trace(network(s, summary.n_classes), (example,)))
        check_cells(profile, structure, s, summary.shape, classes=summary.n_classes)
