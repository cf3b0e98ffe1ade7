"""A run: profile, calibrate, train dense and to a budget, shrink, export, measure, report. A folder that resumes.

Every stage leaves a file; a stage whose file is there is not done again. Dense and pruned networks see the same
data in the same order with the same recipe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import latency
from halpiee.deploy.calibrate import Round, calibrate, close_loop
from halpiee.deploy.onnx import ExportReport, export_onnx
from halpiee.errors import MissingError, OutputInUseError, ProfileError, UsageError
from halpiee.methods.iee import IEE
from halpiee.methods.pools import LatencyPool, bind
from halpiee.report import render_html, render_markdown
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Plan
from halpiee.structure.shrink import shrink
from halpiee.structure.size import macs, widths
from halpiee.structure.trace import trace
from halpiee.training import record
from halpiee.training.checkpoint import load_state, load_weights, save_json, save_weights
from halpiee.training.data import Data, Summary, check, load
from halpiee.training.loop import Trainer, evaluate, make_optimizer, pick_threads
from halpiee.training.settings import Settings, parse_budget
from halpiee.zoo import build, resolve
from latency.benchmark import compare
from latency.predict import Calibration

__all__ = ["Run", "Talk"]


class Talk(Protocol):
    """Where a run says what it is doing."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def training(self, label: str, step: int, total: int, entry: dict[str, Any] | None) -> None:
        """Training has moved on; ``entry`` is a new history entry."""

    def sweeping(self, done: int, total: int) -> None:
        """The sweep has measured ``done`` of ``total`` cells."""


@dataclass
class Run:
    """One run and its folder.

    Attributes:
        settings: what to do.
        folder: where everything goes.
        talk: told what happens.
    """

    settings: Settings
    folder: Path
    talk: Talk

    # -- opening ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, settings: Settings, folder: Path, talk: Talk, *, resume: bool = False) -> Run:
        """Checks everything that can be checked in two seconds, then claims the folder.

        Raises:
            UsageError: unknown model, bad budget, a profile of another device, settings that differ on resume.
            DataError: data that is missing or unreadable.
            OutputInUseError: the folder holds something, and ``resume`` was not asked.
            MissingError: the device is not there.
        """
        stored = folder / "settings.json"
        if folder.exists() and not folder.is_dir():
            raise OutputInUseError(f"--out {folder} is a file; choose a folder that does not exist yet")
        if stored.is_file():
            if not resume:
                raise OutputInUseError(
                    f"--out {folder} already holds a run; add --resume to continue it, or choose another folder"
                )
            before = Settings.from_dict(json.loads(stored.read_text()))
            if before.digest != settings.digest:
                was, now = before.as_dict(), settings.as_dict()
                changed = [f"{k}: {was[k]!r} then, {now[k]!r} now" for k in now if was.get(k) != now[k]]
                raise UsageError(
                    f"--resume of {folder} was asked with other settings ({'; '.join(changed)}); "
                    "resume with the same ones, or choose another folder"
                )
        elif resume:
            raise UsageError(
                f"--resume was asked, but {folder} holds no run; leave --resume out to start one"
            )
        elif folder.is_dir() and any(folder.iterdir()):
            raise OutputInUseError(
                f"--out {folder} is not empty; choose a folder that is empty or does not exist yet"
            )
        run = cls(settings, folder, talk)
        run.check()
        folder.mkdir(parents=True, exist_ok=True)
        if not stored.is_file():
            save_json(stored, settings.as_dict())
        return run

    def check(self) -> None:
        """Looks at everything that could be wrong before the long work starts."""
        s = self.settings
        resolve(s.model)
        summary = check(s.data, size=s.size)
        if s.backend != "onnxruntime":
            raise UsageError(
                f"--backend {s.backend} was asked; training to a latency measures with onnxruntime"
            )
        if s.device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingError("--device cuda was asked, and no CUDA device is there; use --device cpu")
        if s.weights is not None:
            load_weights(Path(s.weights))
        if s.profile is not None:
            self._check_profile(Path(s.profile), summary)

    def _check_profile(self, path: Path, summary: Summary) -> None:
        """Refuses a profile of another device, or one that lacks ops of this network."""
        s = self.settings
        if not path.is_file():
            raise UsageError(
                f"--profile {path} was asked for, and there is no such file; "
                f"make it with `halpiee profile {s.model} --batch {s.batch} --out {path}`"
            )
        profile = latency.Profile.load(path)
        profile.require(latency.environment(backend=s.backend, threads=s.threads))
        if summary.shape is not None and summary.n_classes is not None:  # else only loading the data tells
            example = torch.zeros(s.batch, *summary.shape)
            self._check_cells(profile, trace(self._network(summary.n_classes), (example,)), summary.shape)

    def _check_cells(self, profile: latency.Profile, structure: Structure, shape: tuple[int, ...]) -> None:
        s = self.settings
        ops = [timed.op for timed in structure.ops if timed.op.kind in ("conv", "linear")]
        lacking = [op for op in ops if not _reaches(profile, op)]
        if lacking:
            op = lacking[0]
            raise ProfileError(
                f"--profile {s.profile} lacks {len(lacking)} of the network's {len(ops)} convs and linears, the first "
                f"of them {op.kind} {op.kernel} on {op.h}×{op.w}, batch {op.batch}; measure this network with "
                f"`halpiee profile {s.model} --size {'x'.join(map(str, shape))} --batch {s.batch} --out FILE`"
            )

    # -- parts, made when they are needed -----------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where training happens."""
        if self.settings.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.settings.device)

    @cached_property
    def data(self) -> Data:
        """The data, decoded once."""
        return load(self.settings.data, size=self.settings.size).to(self.device)

    def build(self) -> nn.Module:
        """Returns the network with the run's initial weights."""
        return self._network(self.data.n_classes)

    def _network(self, n_classes: int) -> nn.Module:
        torch.manual_seed(self.settings.seed)
        extra = {} if self.settings.width is None else {"width": self.settings.width}
        return build(self.settings.model, num_classes=n_classes, **extra)

    @cached_property
    def example(self) -> tuple[torch.Tensor]:
        """One batch of random images at the batch size of the budget."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return (torch.randn(self.settings.batch, *self.data.shape, generator=generator),)

    @cached_property
    def structure(self) -> Structure:
        """Units and ops of the network."""
        return trace(self.build(), self.example)

    def macs(self, counts: Mapping[str, int]) -> int:
        """Returns the multiply-accumulates of one image."""
        return sum(macs(self.structure, counts).values())

    def params(self, model: nn.Module) -> int:
        """Returns the number of parameters."""
        return sum(p.numel() for p in model.parameters())

    # -- stages -----------------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        """Does every stage that is still to do and returns the report."""
        finished = self.folder / "report.json"
        if finished.is_file():
            report: dict[str, Any] = json.loads(finished.read_text())
            self.talk.note(f"{self.folder} is finished; showing its report")
            return report
        seconds: dict[str, float] = self._times()
        self.talk.stage("Profile")
        profile = self._timed(seconds, "profile", self._profile)
        self.talk.stage("Calibrate")
        cost = self._timed(
            seconds, "calibrate", lambda: self._calibrate(LatencyCost(self.structure, profile))
        )
        bind(Latency(us=self._budget_us(cost)), Channels(self.build(), self.structure), cost)  # reachable?
        dense = None
        if self.settings.baseline or self.settings.weights:
            self.talk.stage("Train dense" if not self.settings.weights else "Given weights")
            dense = self._timed(seconds, "dense", self._dense)
        self.talk.stage("Train to the budget")
        pruned = self._timed(seconds, "pruned", lambda: self._pruned(cost))
        self.talk.stage("Export and measure")
        return self._report(dense, pruned, seconds, time.perf_counter())

    def _times(self) -> dict[str, float]:
        path = self.folder / "seconds.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _timed(self, seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
        """Runs one stage and adds its wall time, over interruptions too."""
        begun = time.perf_counter()
        try:
            return work()
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
            save_json(self.folder / "seconds.json", seconds)

    def _profile(self) -> latency.Profile:
        s = self.settings
        if s.profile is not None:
            profile = latency.Profile.load(Path(s.profile))
            self._check_cells(profile, self.structure, self.data.shape)
            return profile
        return latency.sweep(
            [timed.op for timed in self.structure.ops],
            backend=s.backend,
            path=self.folder / "profile.jsonl",
            resume=True,
            threads=s.threads,
            progress=self.talk.sweeping,
        )

    def _calibrate(self, cost: LatencyCost) -> LatencyCost:
        path = self.folder / "calibration.json"
        if not path.is_file():
            s = self.settings
            found = calibrate(
                self.build(),
                cost,
                self.example,
                networks=s.calibration_nets,
                threads=s.threads,
                rounds=s.rounds,
                seed=s.seed,
                progress=self.talk.note,
            )
            save_json(path, _line(found))
        values = json.loads(path.read_text())
        line = Calibration(values["a_us"], values["b"], tuple((x, y) for x, y in values["points"]))
        cost = cost.with_calibration(line)
        self.talk.note(
            f"dense {cost.dense_us:.0f} µs; whole = {line.a_us:.1f} µs + {line.b:.3f} · Σ, "
            f"worst residual {line.worst:.1%}"
        )
        return cost

    def _budget_us(self, cost: LatencyCost) -> float:
        us, fraction = parse_budget(self.settings.budget)
        return us if us is not None else (fraction or 1.0) * cost.dense_us

    def _trainer(self, model: nn.Module, label: str, method: IEE | None, optimizer: Any) -> Trainer:
        trainer = Trainer(
            model,
            optimizer,
            self.data,
            self.settings,
            checkpoint=self.folder / f"{label}.state",
            method=method,
            latency_us=(lambda: method.reports[-1].used) if method is not None else (lambda: None),
            report=lambda step, total, entry: self.talk.training(label, step, total, entry),
        )
        return trainer

    def _threads(self, trainer: Trainer) -> None:
        """Picks the number of training threads by timing, on a copy so that nothing of the run moves."""
        if self.device.type != "cpu":
            return
        path = self.folder / "threads.json"
        if path.is_file():
            torch.set_num_threads(int(json.loads(path.read_text())))
            return
        model = self.build().to(self.device)
        rehearsal = Trainer(model, make_optimizer(model, self.settings), self.data, self.settings)
        x, y = next(self.data.batches(0, self.settings.batch_size, seed=self.settings.seed))
        threads = pick_threads(lambda: rehearsal.train_step(x, y))
        self.talk.note(f"training with {threads} thread{'s' if threads > 1 else ''}")
        save_json(path, threads)

    def _dense(self) -> dict[str, Any]:
        path, weights = self.folder / "dense.json", self.folder / "dense.safetensors"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        model = self._initial().to(self.device)
        if self.settings.weights:
            history: list[dict[str, Any]] = []
            spent = 0.0
        else:
            trainer = self._trainer(model, "dense", None, make_optimizer(model, self.settings))
            self._threads(trainer)
            torch.manual_seed(self.settings.seed)
            state = self.folder / "dense.state"
            if state.is_file():
                trainer.load(load_state(state, self.device))
            trainer.run()
            history, spent = trainer.history, trainer.seconds
        top1, top5 = evaluate(model, self.data)
        result = {
            "accuracy": top1,
            "top5": top5,
            "history": history,
            "seconds": spent,
            "params": self.params(model),
        }
        save_weights(weights, model.state_dict())
        save_json(path, result)
        (self.folder / "dense.state").unlink(missing_ok=True)
        return result

    def _initial(self) -> nn.Module:
        model = self.build()
        if self.settings.weights:
            loaded = load_weights(Path(self.settings.weights))
            try:
                model.load_state_dict(loaded)
            except RuntimeError as error:
                raise UsageError(
                    f"--weights {self.settings.weights} does not fit {self.settings.model}: {error}; "
                    "give the weights of this very network"
                ) from error
        return model

    def _pruned(self, cost: LatencyCost) -> dict[str, Any]:
        path = self.folder / "pruned.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        s = self.settings
        model = self._initial().to(self.device)
        optimizer = make_optimizer(model, s)
        total = self.data.steps_per_epoch(s.batch_size) * s.epochs
        h, j, q = s.cycle.steps(total)
        budget_us = self._budget_us(cost)
        iee = IEE(
            model,
            optimizer,
            budget=Latency(us=budget_us),
            total_steps=total,
            structure=self.structure,
            cost=cost,
            h=h,
            j=j,
            q=q,
            omega=s.cycle.omega,
            end=s.cycle.end,
            decay=s.cycle.decay,
            init=s.cycle.init,
            solver=s.cycle.solver,
            start="pretrained" if s.weights else "scratch",
            seed=s.seed,
        )
        trainer = self._trainer(model, "pruned", iee, optimizer)
        self._threads(trainer)
        torch.manual_seed(s.seed)
        saved = self.folder / "pruned.state"
        state = load_state(saved, self.device) if saved.is_file() else None
        if state is not None and state["stage"] == "compact":
            compact = shrink(model, self.structure, state["extra"]["keep"], optimizer)
            assert isinstance(compact, tuple)
            trainer.replace(*compact)
            iee.detach()
            trainer.load(state)
        elif state is not None:
            trainer.load(state)
        if trainer.stage == "masked":
            trainer.run(until=lambda t: iee.finished)
            cost, rounds = self._close(iee, cost, budget_us)
            trainer.replace(*iee.shrink())
            predicted = cost.total_us(iee.alive.counts)
            trainer.extra = {
                "keep": dict(iee.alive),
                "closed_loop": [asdict(r) for r in rounds],
                "predicted_us": predicted,
                "next_step_us": iee.reports[-1].next_step,
                "calibration": _line(cost.calibration) if cost.calibration else None,
                "gap": iee.reports[-1].gap,
                "dense_us": cost.dense_us,
                "budget_us": budget_us,
            }
            trainer.save()
        trainer.run()
        return self._finish_pruned(trainer, iee, path)

    def _close(self, iee: IEE, cost: LatencyCost, budget_us: float) -> tuple[LatencyCost, list[Round]]:
        """Measures the candidate beside the dense network and solves again until it meets the budget."""
        self.talk.note("measuring the candidate beside the dense network")
        s = self.settings
        cost, turns = close_loop(
            self.build(),
            cost,
            self.example,
            _Candidate(iee),
            budget_us=budget_us,
            threads=s.threads,
            rounds=s.rounds,
        )
        for turn in turns:
            self.talk.note(
                f"round {turn.round}: predicted {turn.predicted_us:.0f} µs, measured {turn.measured_us:.0f} µs, "
                f"wanted {turn.lower_us:.0f} … {turn.upper_us:.0f} µs"
            )
        return cost, turns

    def _finish_pruned(self, trainer: Trainer, iee: IEE, path: Path) -> dict[str, Any]:
        model = trainer.model
        top1, top5 = evaluate(model, self.data)
        counts = {name: int(mask.sum()) for name, mask in trainer.extra["keep"].items()}
        compact_steps = trainer.total_steps - sum(steps for steps, _, _ in iee.log)
        log = [*iee.log, (compact_steps, "compact", counts)]
        extra = {key: value for key, value in trainer.extra.items() if key != "keep"}
        result = {
            "accuracy": top1,
            "top5": top5,
            "history": trainer.history,
            "seconds": trainer.seconds,
            "params": self.params(model),
            "counts": counts,
            "events": record.events(iee.reports),
            "train_flops_ratio": record.train_flops(log, self.macs, trainer.total_steps),
            **extra,
        }
        plan = Plan.from_selection(self.structure, _Selected(trainer.extra["keep"], counts, result))
        (self.folder / "plan.json").unlink(missing_ok=True)
        plan.save(self.folder / "plan.json")
        save_weights(self.folder / "pruned.safetensors", model.state_dict())
        save_json(path, result)
        (self.folder / "pruned.state").unlink(missing_ok=True)
        return result

    def compact(self) -> nn.Module:
        """Returns the finished compact network, rebuilt from its plan and weights."""
        model = Plan.load(self.folder / "plan.json").apply(self.build())
        model.load_state_dict(load_weights(self.folder / "pruned.safetensors"))
        return model.eval()

    def dense(self) -> nn.Module:
        """Returns the dense network with its trained weights, or its initial ones without a baseline."""
        model = self.build()
        if (self.folder / "dense.safetensors").is_file():
            model.load_state_dict(load_weights(self.folder / "dense.safetensors"))
        return model.eval()

    def _report(
        self, dense: dict[str, Any] | None, pruned: dict[str, Any], seconds: dict[str, float], begun: float
    ) -> dict[str, Any]:
        s = self.settings
        exported: dict[str, ExportReport] = {}
        for label, model in (("dense", self.dense()), ("pruned", self.compact())):
            path = self.folder / f"{label}.onnx"
            path.unlink(missing_ok=True)
            exported[label] = export_onnx(
                model,
                self.example,
                path,
                metadata={"halpiee": label, "run": s.digest, "budget": s.budget, "backend": s.backend},
            )
        self.talk.note("timing dense and pruned side by side")
        found = compare(
            {label: self.folder / f"{label}.onnx" for label in ("dense", "pruned")},
            example_inputs=self.example,
            rounds=max(s.rounds, 30),
            threads=s.threads,
        )
        side = {label: found[label] for label in ("dense", "pruned")}
        # The machine's clock may have moved since the profile: a share is of the dense latency measured now,
        # and the prediction is brought to the same clock.
        dense_us, measured_us = side["dense"].median_us, side["pruned"].median_us
        drift = dense_us / pruned["dense_us"]
        us, fraction = parse_budget(s.budget)
        budget_us = us if us is not None else (fraction or 1.0) * dense_us
        next_step_us = (
            pruned["next_step_us"] if pruned["next_step_us"] is not None else float("nan")
        ) * drift
        kept = record.promise(measured_us, budget_us, next_step_us)
        ratio = found.ratio("dense", "pruned")
        seconds["export"] = seconds.get("export", 0.0) + time.perf_counter() - begun
        counts = pruned["counts"]
        report: dict[str, Any] = {
            "schema": record.SCHEMA,
            "model": s.model if s.width is None else f"{s.model} ×{s.width:g}",
            "data": s.data,
            "method": s.method,
            "budget": s.budget,
            "backend": s.backend,
            "precision": "float32",
            "batch": s.batch,
            "threads": s.threads,
            "environment": dict(latency.environment(backend=s.backend, threads=s.threads)),
            "dense_us": dense_us,
            "budget_us": budget_us,
            "predicted_us": pruned["predicted_us"] * drift,
            "measured_us": measured_us,
            "next_step_us": next_step_us,
            "dense_iqr_us": side["dense"].iqr_us,
            "measured_iqr_us": side["pruned"].iqr_us,
            "contention": max(side["dense"].contention, side["pruned"].contention),
            "clock": side["dense"].clock,
            "clock_drift": drift,
            "speedup": ratio.median,
            "speedup_ci": [ratio.lo, ratio.hi],
            "gap": pruned["gap"],
            "accuracy_dense": dense["accuracy"] if dense else None,
            "accuracy_pruned": pruned["accuracy"],
            "top5_dense": dense["top5"] if dense else None,
            "top5_pruned": pruned["top5"],
            "train_flops_ratio": pruned["train_flops_ratio"],
            "onnx_rel_l2": exported["pruned"].rel_l2,
            "onnx_max_abs_error": exported["pruned"].max_abs_error,
            "fps_dense": s.batch * 1e6 / dense_us,
            "fps_pruned": s.batch * 1e6 / measured_us,
            "macs_dense": self.macs({}),
            "macs_pruned": self.macs(counts),
            "params_dense": self.params(self.dense()),
            "params_pruned": pruned["params"],
            "widths": widths(self.structure, counts),
            "widths_dense": widths(self.structure),
            "seconds": sum(seconds.values()),
            "seconds_by_stage": seconds,
            "seconds_training": {"dense": dense["seconds"] if dense else None, "pruned": pruned["seconds"]},
            "events": pruned["events"],
            "history": {"dense": dense["history"] if dense else [], "pruned": pruned["history"]},
            "closed_loop": pruned["closed_loop"],
            "calibration": pruned["calibration"],
            "promise": kept,
            "settings": s.as_dict(),
            "files": {
                "onnx": "pruned.onnx",
                "dense_onnx": "dense.onnx",
                "plan": "plan.json",
                "weights": "pruned.safetensors",
                "page": "report.html",
            },
        }
        (self.folder / "report.html").write_text(render_html(report))
        (self.folder / "report.md").write_text(render_markdown(report))
        save_json(self.folder / "report.json", report)
        return dict(json.loads((self.folder / "report.json").read_text()))


def _reaches(profile: latency.Profile, op: latency.Op) -> bool:
    """Whether the profile can price the op as built."""
    try:
        profile.table(op).lookup(op.c_in, op.c_out)
    except ProfileError:
        return False
    return True


def _line(calibration: Calibration) -> dict[str, Any]:
    """Returns a calibration as JSON values, with its worst residual."""
    return {**asdict(calibration), "worst": calibration.worst}


class _Candidate:
    """IEE's selection as the closed loop sees it."""

    def __init__(self, iee: IEE) -> None:
        self._iee = iee
        self._turns = [(iee.alive, iee.reports[-1])]

    @property
    def counts(self) -> dict[str, int]:
        return self._iee.alive.counts

    @property
    def next_step_us(self) -> float:
        return self._iee.reports[-1].next_step

    def solve_again(self, cost: LatencyCost) -> None:
        assert isinstance(self._iee.pool, LatencyPool)
        self._iee.choose_again(self._iee.pool.with_cost(cost))
        self._turns.append((self._iee.alive, self._iee.reports[-1]))

    def go_back(self, turn: int) -> None:
        self._iee.adopt(*self._turns[turn])


@dataclass(frozen=True)
class _Selected:
    """What a plan records of the units that training chose."""

    keep: dict[str, torch.Tensor]
    counts: dict[str, int]
    result: dict[str, Any]

    @property
    def latency_us(self) -> float:
        return float(self.result["predicted_us"])

    @property
    def budget_us(self) -> float:
        return float(self.result["budget_us"])

    @property
    def gap(self) -> float:
        return float(self.result["gap"])

    @property
    def value(self) -> float:
        return float("nan")

    @property
    def upper_bound(self) -> float:
        return float("nan")
