"""Runs that prune a trained network and train it again, held to the same training written out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.training import stage
from halpiee.training.build import learning_rate, make_optimizer, network
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Masks, Settings
from halpiee.training.job import Run
from halpiee.training.preflight import open_run

from .talk import Quiet, one_thread, trained

EPOCHS, STEPS = 2, 20


@pytest.fixture(autouse=True, scope="module")
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "pick_threads", one_thread)
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


def settings(method: str, **masks: Any) -> Settings:
    return Settings(
        model="toy:net",
        data="toy:data",
        method=method,
        epochs=EPOCHS,
        batch_size=12,
        masks=Masks(**{"sparsity": 0.5, **masks}),
    )


def train(
    given: Settings, folder: Path, talk: Quiet | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """The two training stages of a run, without export and measurement."""
    return trained(open_run(given, folder, talk or Quiet(), resume=resume))


def by_hand(
    given: Settings, run: Run, start: dict[str, Tensor], mask: dict[str, Tensor] | None, first: int
) -> list[dict[str, Tensor]]:
    """State after every step from ``first`` on; masked weights and their momentum are zeroed after each step."""
    torch.manual_seed(given.seed)
    model = network(given, 6)
    model.load_state_dict(start)
    zero(model, mask)
    optimizer = make_optimizer(model, given)
    states = []
    for step in range(first, STEPS):
        epoch, at = divmod(step, 10)
        x, y = next(iter(run.data.batches(epoch, 12, seed=given.seed, start=at)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, given, STEPS)
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
        zero(model, mask)
        for name, p in model.named_parameters():
            if mask is not None and name in mask:
                optimizer.state[p]["momentum_buffer"].mul_(mask[name])
        states.append({n: t.clone() for n, t in model.state_dict().items()})
    return states


@torch.no_grad()
def zero(model: nn.Module, mask: dict[str, Tensor] | None) -> None:
    for name, p in model.named_parameters():
        if mask is not None and name in mask:
            p.mul_(mask[name])


def largest(state: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The largest weights of all matrices together."""
    weights = {n: t.abs() for n, t in state.items() if t.dim() > 1}
    flat = torch.cat([w.flatten() for w in weights.values()])
    least = flat.sort(descending=True).values[round(share * len(flat)) - 1]
    return {n: w >= least for n, w in weights.items()}


@pytest.mark.parametrize(
    ("method", "options", "step"),
    [
        ("ltr", {"rewind": 7}, 7),
        ("lth", {}, 0),
        ("lrr", {}, None),
        ("ltr", {"rewind": 7, "restart": True}, 7),
    ],
    ids=["ltr", "lth", "lrr", "ltr-restart"],
)
def test_a_rewound_training_is_the_one_written_out_by_hand(
    method: str, options: dict[str, Any], step: int | None, tmp_path: Path
) -> None:
    given = settings(method, **options)
    found = train(given, tmp_path / "run")
    run = open_run(given, tmp_path / "other", Quiet())
    begin = {n: t.clone() for n, t in network(given, 6).state_dict().items()}
    dense = by_hand(given, run, begin, None, 0)
    mask = largest(dense[-1], 0.5)
    start = dense[-1] if step is None else [begin, *dense][step]
    first = 0 if step is None or "restart" in options else step
    expected = by_hand(given, run, start, mask, first)[-1]
    pruned = load_weights(tmp_path / "run" / "pruned.safetensors")
    for name, value in expected.items():
        assert torch.equal(pruned[name], value), name
    kept = load_weights(tmp_path / "run" / "mask.safetensors")
    assert all(torch.equal(kept[n], m) for n, m in mask.items())
    assert found["sparsity"]["kept"] == 576
    # the dense training counts once, then every step by the active share of 7776 + 31104 + 72 MACs
    share = sum(
        n * float(mask[f"{k}.weight"].float().mean())
        for k, n in (("conv1", 7776), ("conv2", 31104), ("fc", 72))
    )
    ratio = 1 + (STEPS - first) / STEPS * share / 38952
    assert found["train_flops_ratio"]["strict"] == pytest.approx(ratio, abs=1e-4)


TWO_ROUNDS = {"rewind": 7, "rounds": 2}


@pytest.fixture(scope="module")
def whole(toy: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of a training in two rounds that nothing interrupted."""
    folder = tmp_path_factory.mktemp("rewound") / "whole"
    return folder, train(settings("ltr", **TWO_ROUNDS), folder)


@pytest.mark.parametrize(
    "at", [("dense", 3), ("dense", 13), ("round1", 4), ("round1", 10), ("pruned", 9), ("pruned", 15)], ids=str
)
def test_an_interrupted_rewinding_continues_bit_equal(
    at: tuple[str, int], whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    given = settings("ltr", **TWO_ROUNDS)
    if at == ("round1", 4):
        at = ("round1", 8)  # the rewound schedule begins with step 7
    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "cut", Quiet(at))
    assert not (tmp_path / "cut" / "pruned.json").exists()
    torch.manual_seed(1234)
    found = train(given, tmp_path / "cut", resume=True)
    for file in ("pruned", "round1", "dense-step", "mask"):
        first, second = (load_weights(f / f"{file}.safetensors") for f in (whole[0], tmp_path / "cut"))
        assert all(torch.equal(value, second[name]) for name, value in first.items()), file
    assert found["train_flops_ratio"] == whole[1]["train_flops_ratio"]


def test_rounds_remove_survivors_only_and_end_at_the_sparsity(tmp_path: Path) -> None:
    train(settings("lrr", sparsity=0.75, rounds=2), tmp_path / "run")
    first, last = (load_weights(tmp_path / "run" / f"{n}.safetensors") for n in ("round1", "pruned"))
    kept = load_weights(tmp_path / "run" / "mask.safetensors")
    assert sum(int(m.sum()) for m in kept.values()) == 288
    for name, mask in kept.items():
        assert not bool((mask & (first[name] == 0)).any())
        assert bool((last[name][~mask] == 0).all())
    assert json.loads((tmp_path / "run" / "round1.json").read_text())["log"][0][0] == STEPS


def test_ablations_change_the_places_or_the_weights_and_not_the_counts(tmp_path: Path) -> None:
    kept, weights = {}, {}
    for name in (None, "shuffle", "reinit"):
        folder = tmp_path / str(name)
        train(settings("lth", ablation=name), folder)
        kept[name], weights[name] = (load_weights(folder / f"{f}.safetensors") for f in ("mask", "pruned"))
    for layer, mask in kept[None].items():
        assert int(kept["shuffle"][layer].sum()) == int(mask.sum())
        assert torch.equal(kept["reinit"][layer], mask)
    assert not torch.equal(kept["shuffle"]["conv2.weight"], kept[None]["conv2.weight"])
    assert not torch.equal(weights["reinit"]["conv2.weight"], weights[None]["conv2.weight"])


def test_the_final_mask_of_a_run_is_trained_anew_from_other_weights(tmp_path: Path) -> None:
    rigl = open_run(settings("rigl"), tmp_path / "rigl", Quiet())
    trained(rigl)
    given = settings("static", sparsity=None, mask=str(tmp_path / "rigl"))
    found = trained(open_run(given, tmp_path / "again", Quiet()))
    first, second = (load_weights(tmp_path / n / "mask.safetensors") for n in ("rigl", "again"))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert found["sparsity"]["kept"] == found["sparsity"]["asked"] == 576
    other = settings("static", sparsity=None, mask=str(tmp_path / "rigl"), ablation="reinit")
    trained(open_run(other, tmp_path / "reinit", Quiet()))
    weights = [load_weights(tmp_path / n / "pruned.safetensors")["conv2.weight"] for n in ("again", "reinit")]
    assert not torch.equal(*weights)


def test_a_pruning_at_a_later_step_may_begin_the_schedule_anew(tmp_path: Path) -> None:
    given = settings("magnitude", at=5, restart=True)
    run = open_run(given, tmp_path / "run", Quiet())
    found = trained(run)
    density = found["sparsity"]["densities"]
    share = (
        sum(n * density[f"{k}.weight"] for k, n in (("conv1", 7776), ("conv2", 31104), ("fc", 72))) / 38952
    )
    assert found["train_flops_ratio"]["paper"] == pytest.approx((5 + STEPS * share) / STEPS, abs=1e-4)
    assert [e["step"] for e in found["history"]] == [10, 20]


def test_given_weights_are_the_trained_ones_of_learning_rate_rewinding(tmp_path: Path) -> None:
    from dataclasses import replace

    from halpiee.training.checkpoint import save_weights

    trained = network(settings("lrr"), 6)
    save_weights(tmp_path / "w.safetensors", trained.state_dict())
    given = replace(settings("lrr"), weights=str(tmp_path / "w.safetensors"))
    found = train(given, tmp_path / "run")
    mask = largest(trained.state_dict(), 0.5)
    kept = load_weights(tmp_path / "run" / "mask.safetensors")
    assert all(torch.equal(kept[n], m) for n, m in mask.items())
    assert found["train_flops_ratio"]["paper"] < 1


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("lrr", {"rewind": 5}, "--rewind 5 was given to --method lrr; only ltr takes weights of a step"),
        ("rigl", {"ablation": "shuffle"}, "--method static --mask RUN --ablation shuffle"),
        ("rigl", {"criterion": "l1"}, "--criterion l1 was given to --method rigl; its paper has its own"),
        ("rigl", {"rounds": 5}, "--rounds 5 was given to --method rigl; it has no rounds"),
        ("rigl", {"regrow": 0.3}, "--regrow 0.3 was given to --method rigl; only filter exchanges filters"),
        (
            "gmp",
            {"initial": 0.2},
            "--initial 0.2 was given to --method gmp; only granet starts from a sparsity",
        ),
        ("gmp", {"regrow_until": "pruning"}, "--regrow-until pruning was given to --method gmp; only granet"),
        ("rigl", {"at": 5}, "--at 5 was given to --method rigl; it is of one-shot pruning"),
        (
            "rigl",
            {"mask": "runs/a", "sparsity": None},
            "--mask was given to --method rigl, which chooses its own",
        ),
        ("static", {"mask": "runs/a"}, "--mask runs/a and a sparsity were asked"),
        ("snip", {"restart": True}, "give --at STEP or --method ltr"),
        (
            "snip",
            {"ablation": "shuffle", "sparsity": None, "distribution": "nm"},
            "whose runs a shuffled mask",
        ),
        ("rigl", {"init": "random-scores"}, "it is IEE's own"),
        ("iee", {"init": "magnitude"}, "--init random, --init random-scores or --weights"),
        (
            "ltr",
            {"rewind": -1},
            "--rewind -1 was asked; give at least 0 and at most 1,000,000,000, a whole number",
        ),
        ("rigl", {"fraction": 1.5}, "--fraction 1.5 was asked; give at least 0 and at most 1"),
    ],
)
def test_an_option_that_the_method_has_no_use_for_is_refused(
    method: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        settings(method, **options)


def test_rewinding_given_weights_to_a_step_is_refused() -> None:
    with pytest.raises(
        UsageError, match="--weights w are already trained; leave --weights out, or use --method lrr"
    ):
        Settings(model="m", data="d", method="lth", weights="w", masks=Masks(sparsity=0.5))


def test_a_step_beyond_the_training_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = Settings(
        model="resnet20",
        data="digits",
        size=16,
        method="ltr",
        epochs=1,
        masks=Masks(sparsity=0.5, rewind=5000),
    )
    with pytest.raises(UsageError, match="--rewind 5000 was asked of a training of 22 steps"):
        open_run(given, tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()


def test_a_mask_that_is_not_there_or_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there is no .*mask\.safetensors; give the folder of a finished run"
    ):
        open_run(
            Settings(
                model="resnet20", data="digits", size=16, method="static", masks=Masks(mask=str(tmp_path))
            ),
            tmp_path / "run",
            Quiet(),
        )


def test_every_epoch_says_what_the_training_has_cost_so_far(tmp_path: Path) -> None:
    found = trained(open_run(settings("rigl", interval=5), tmp_path / "run", Quiet()))
    density = found["sparsity"]["densities"]
    share = (
        sum(n * density[f"{k}.weight"] for k, n in (("conv1", 7776), ("conv2", 31104), ("fc", 72))) / 38952
    )
    # dense weight gradients are read in step 5 of the first ten, and in step 10 for the update after it
    expected = [(3 * 10 * share + 2 * (1 - share)) / 30, found["train_flops_ratio"]["strict"]]
    assert [e["train_flops"]["strict"] for e in found["history"]] == pytest.approx(expected, abs=1e-4)
    assert [e["density"] for e in found["history"]] == [0.5, 0.5]
