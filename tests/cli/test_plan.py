"""``halpiee plan`` from a made-up profile: what is chosen, what is said, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import halpiee
from halpiee import zoo
from halpiee.cli.app import program
from halpiee.cli.scores import filter_norms, scores_of
from halpiee.errors import BudgetError, OutputInUseError, ProfileError, UsageError
from halpiee.selection.cost import LatencyCost
from latency import Profile

from .plans import plan, refusal, run, write_profile
from .separable import build


def test_the_plan_meets_its_budget_and_says_what_was_scored(profile: Path) -> None:
    found = plan(profile, "--budget", "0.5")
    assert found["predicted_us"] <= found["budget_us"] == pytest.approx(0.5 * found["dense_us"])
    assert 0 <= found["gap"] <= 1e-3
    assert found["slack_us"] < found["next_step_us"]
    assert found["scores"].startswith("L2 norms of the untrained filters")
    assert found["protected"] == []
    assert all(count % 4 == 0 for count, _ in found["groups"].values())


def test_untrained_filters_are_scored_by_their_norms() -> None:
    model = zoo.build("resnet20", width=0.25).eval()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 8, 8),))
    norms = filter_norms(model, structure)
    inner = model.get_parameter("layers.0.0.conv1.weight")
    expected = inner.detach().double().square().sum(dim=(1, 2, 3)).sqrt()
    assert torch.allclose(norms["layers.0.0.conv1"], expected)
    # The stream is written by the stem and by three blocks: their squares add up.
    writers = [
        model.get_parameter(f"{n}.weight") for n in ("conv1", *(f"layers.0.{i}.conv2" for i in range(3)))
    ]
    squares = torch.stack([w.detach().double().square().sum(dim=(1, 2, 3)) for w in writers]).sum(dim=0)
    assert torch.allclose(norms["conv1"], squares.sqrt())


def test_trained_norms_decide_and_those_that_are_all_the_same_are_named() -> None:
    model = zoo.build("resnet20", width=0.25).eval()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 8, 8),))
    norms, what = scores_of(model, structure, None, trained=True)  # all γ are 1 still
    assert what.endswith("the scales of their norms are all equal")
    assert torch.equal(norms["conv1"], filter_norms(model, structure)["conv1"])
    inner = model.get_parameter("layers.0.0.bn1.weight")
    with torch.no_grad():
        inner.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]))
    scores, what = scores_of(model, structure, None, trained=True)
    assert scores["layers.0.0.conv1"].tolist() == [0.5, 2.0, 1.0, 3.0]
    assert "does not tell the units of conv1" in what
    assert "layers.0.0.conv1" not in what


def test_scores_of_your_own_decide(structure: halpiee.Structure, profile: Path, tmp_path: Path) -> None:
    loved = structure.prunable[3].name
    scores = {g.name: [2.0**-20] * g.size for g in structure.prunable}
    scores[loved] = [1.0] * len(scores[loved])
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(scores))
    found = plan(profile, "--budget", "0.4", "--scores", str(file))
    assert found["groups"][loved][0] == found["groups"][loved][1]
    assert found["scores"] == f"read from {file}"
    from safetensors.torch import save_file

    tensors = tmp_path / "scores.safetensors"
    save_file({name: torch.tensor(values) for name, values in scores.items()}, tensors)
    assert plan(profile, "--budget", "0.4", "--scores", str(tensors))["widths"] == found["widths"]


def test_given_weights_are_scored_by_magnitude(profile: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found = plan(profile, "--budget", "0.5", "--weights", str(tmp_path / "weights.safetensors"))
    assert found["scores"] == "magnitude of the weights given"


def test_weights_of_another_network_are_refused_in_one_sentence(profile: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file(zoo.build("resnet20", width=0.25).state_dict(), file)
    text = refusal(profile, UsageError, "--budget", "0.5", "--weights", str(file))
    assert text.startswith(f"--weights {file} does not fit separable:build: Missing key(s) in state_dict: ")
    assert text.endswith(" …; give the weights of this very network")


def test_the_first_group_is_protected_where_that_is_asked(
    structure: halpiee.Structure, profile: Path
) -> None:
    first = structure.prunable[0].name
    found = plan(profile, "--budget", "0.3", "--protect-first", "--protect", structure.prunable[2].name)
    assert found["protected"] == sorted([first, structure.prunable[2].name])
    for name in found["protected"]:
        assert found["groups"][name][0] == found["groups"][name][1]


def test_least_most_multiple_and_ranges_are_kept(structure: halpiee.Structure, profile: Path) -> None:
    one = structure.prunable[1].name
    found = plan(
        profile,
        "--budget",
        "0.6",
        "--min-width",
        "0.5",
        "--most",
        "0.75",
        "--multiple-of",
        "8",
        "--between",
        f"{one}=8..8",
    )
    assert found["groups"][one][0] == 8
    for count, size in found["groups"].values():
        assert count % 8 == 0
        assert size / 2 <= count <= max(0.75 * size, 8)


def test_several_limits_are_kept_at_once(structure: halpiee.Structure, profile: Path, tmp_path: Path) -> None:
    second = write_profile(structure, tmp_path / "four.jsonl", batch=4)
    alone = plan(profile, "--budget", "0.6")
    found = plan(
        profile, "--budget", "0.6", "--also", "macs=0.4", "--also", f"profile={second}:0.5", "--also", "memory=0.8",
        "--also", "params=90%",
    )  # fmt: skip
    assert alone["macs"] > 0.4 * alone["macs_dense"]
    assert found["macs"] <= 0.4 * found["macs_dense"]
    assert [limit["limit"] for limit in found["limits"]] == [
        "latency",
        "macs",
        str(second),
        "memory",
        "params",
    ]
    for limit in found["limits"]:
        assert limit["used"] <= limit["most"] * (1 + 1e-9)
    # At batch 4 everything takes four times as long here.
    assert found["limits"][2]["used"] == pytest.approx(4 * found["predicted_us"])


def test_energy_is_a_column_of_the_profile_and_the_curve_keeps_all_limits(
    structure: halpiee.Structure, profile: Path, tmp_path: Path
) -> None:
    cells = Profile.load(profile).cells
    # narrow layers take as long as they do, and four times the energy of wide ones
    measured = [{**c, "energy_mj": c["us"] * (4 if c["c_out"] <= 8 else 1)} for c in cells]
    Profile({}, measured).save(tmp_path / "joule.jsonl")
    found = plan(tmp_path / "joule.jsonl", "--budget", "0.9", "--also", "energy=0.6", "--sweep")
    energy = LatencyCost(structure, Profile({}, [{**c, "us": c["energy_mj"]} for c in measured]))
    counts = {name: kept for name, (kept, _) in found["groups"].items()}
    assert found["limits"][1]["used"] == pytest.approx(energy.total(counts))
    assert energy.total(counts) <= 0.6 * energy.dense * (1 + 1e-9)
    assert plan(profile, "--budget", "0.9")["predicted_us"] > found["predicted_us"]
    assert len({p["value"] for p in found["curve"] if p["budget_us"] > found["predicted_us"]}) == 1


def test_only_frees_what_its_layers_write_alone_and_protect_what_they_write_at_all(
    structure: halpiee.Structure, profile: Path
) -> None:
    names = [g.name for g in structure.prunable]
    writers: dict[str, set[str]] = {name: set() for name in names}
    for layer in structure.layers:
        for name, _ in layer.out_groups:
            if name in writers:
                writers[name].add(layer.name)
    one = names[1]
    free = plan(profile, "--budget", "0.95", "--only", one)
    assert set(free["protected"]) == set(names) - {one}
    written_by = sorted(writers[one])[0]
    kept = plan(profile, "--budget", "0.95", "--protect", written_by)
    assert set(kept["protected"]) == {name for name in names if written_by in writers[name]}


def test_the_curve_falls_with_the_latency_and_is_drawn(profile: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    found = plan(profile, "--budget", "0.5", "--plot", str(picture))
    latencies = [p["latency_us"] for p in found["curve"]]
    values = [p["value"] for p in found["curve"]]
    assert latencies == sorted(latencies)
    assert values == sorted(values)
    assert latencies[-1] == pytest.approx(found["dense_us"])
    assert picture.read_text().lstrip().startswith("<?xml")


def test_the_plan_in_a_file_is_the_plan_that_was_said(profile: Path, tmp_path: Path) -> None:
    found = plan(profile, "--budget", "0.5", "--out", str(tmp_path / "half.json"))
    saved = halpiee.Plan.load(tmp_path / "half.json")
    assert saved.counts == {name: count for name, (count, _) in found["groups"].items()}
    environment = Profile.load(profile).environment
    assert saved.target == {
        "batch": 1,
        **{key: environment.get(key) for key in ("device", "backend", "dtype", "threads")},
    }
    fresh = build().eval()
    layers = {n: m for n, m in saved.apply(fresh).named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {n: m.out_channels for n, m in layers.items()} == {n: found["widths"][n] for n in layers}


def test_a_dense_budget_leaves_nothing_to_widen(profile: Path) -> None:
    assert plan(profile, "--budget", "1.0")["next_step_us"] is None


def test_linear_says_when_its_plan_is_over_budget(structure: halpiee.Structure, profile: Path) -> None:
    # Its costs are frozen at the dense widths, so it ends below the budget, and says so of its own bound.
    shown = run(profile, "--budget", "0.5", "--solver", "linear")
    assert "of its own linearised problem" in " ".join(shown.output.split())


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (("--budget", "0.001"), BudgetError, "the narrowest network allowed takes"),
        (("--budget", "1.5"), UsageError, "1.5 times the dense latency"),
        (("--budget", "0.5", "--also", "joy=1"), UsageError, "the quantities are macs, params, memory"),
        (("--budget", "0.5", "--also", "macs"), UsageError, "give WHAT=LIMIT"),
        (("--budget", "0.5", "--also", "macs=much"), UsageError, "give a share up to 1"),
        (("--budget", "0.5", "--also", "params=10"), BudgetError, "params: at most 10 was asked"),
        (
            ("--budget", "0.5", "--also", "macs=0.5", "--solver", "linear"),
            UsageError,
            "leave one of the two out",
        ),
        (
            ("--budget", "0.5", "--also", "profile=0.5"),
            UsageError,
            "names no profile; give profile=FILE:MOST",
        ),
        (
            ("--budget", "0.5", "--also", "profile=no.jsonl:0.5"),
            UsageError,
            "'no.jsonl' was asked; that is no",
        ),
        (("--budget", "0.5", "--also", "energy=0.5"), ProfileError, "cells of the profile holds energy_mj"),
        (("--budget", "0.5", "--also", "energy=3kB"), UsageError, "or a number with mJ"),
        (
            ("--budget", "0.5", "--only", "features.0", "--protect", "features"),
            UsageError,
            "nothing can be cut",
        ),
        (("--budget", "0.5", "--between", "x"), UsageError, "give GROUP=FEWEST..MOST"),
        (
            ("--budget", "0.5", "--protect", "nobody"),
            UsageError,
            "`halpiee explain separable:build --size 16 --width 0.25` lists",
        ),
        (
            ("--budget", "0.5", "--only", "featurs.0"),
            UsageError,
            "--only featurs.0 was asked, and no layer is called that",
        ),
        (("--budget", "0.5", "--protect", "featurs.0"), UsageError, "did you mean 'features.0'"),
        (("--budget", "0.5", "--between", "featurs.0=1..2"), UsageError, "--between featurs.0 was asked"),
        (("--budget", "0.5", "--scores", "nowhere.json"), UsageError, "there is no such file"),
    ],
)
def test_bad_input_is_refused_by_name(profile: Path, options: tuple[str, ...], kind: type, text: str) -> None:
    assert text in refusal(profile, kind, *options)


def test_a_plan_without_a_profile_says_both_ways_to_one() -> None:
    done = CliRunner().invoke(program, ["plan", "resnet20", "--size", "32", "--budget", "0.5"])
    assert isinstance(done.exception, UsageError)
    assert "halpiee profile resnet20 --size 32 --out FILE, or give --lazy" in str(done.exception)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda s, g: {**s, g: [float("nan")] * len(s[g])},
            "holds nan at unit 0; every score must be finite",
        ),
        (lambda s, g: {**s, g: s[g][:-1]}, "has 8 units; give a list of 8 numbers"),
        (lambda s, g: {k: v for k, v in s.items() if k != g}, "groups are missing"),
        (lambda s, g: {**s, g + "x": s[g]}, "did you mean"),
        (lambda s, g: [1, 2], "not group → list of numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_group(
    structure: halpiee.Structure,
    profile: Path,
    tmp_path: Path,
    change: Callable[[Any, str], object],
    text: str,
) -> None:
    scores = {g.name: [1.0] * g.size for g in structure.prunable}
    group = next(g.name for g in structure.prunable if g.size == 8)
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(change(scores, group)))
    assert text in refusal(profile, UsageError, "--budget", "0.5", "--scores", str(file))


def test_nothing_is_overwritten(profile: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.svg"
    mine.write_text("mine")
    for option in ("--plot", "--out"):
        assert "exists" in refusal(profile, OutputInUseError, "--budget", "0.5", option, str(mine))
    assert mine.read_text() == "mine"


def test_a_memory_limit_below_the_narrowest_network_says_what_that_needs(profile: Path) -> None:
    # Four channels in and four out of the first blocks, 16 x 16 positions, four bytes each.
    text = refusal(profile, BudgetError, "--budget", "0.5", "--also", "memory=4kB")
    assert "8,192" in text
    assert "8.2kB" in text
    assert run(profile, "--budget", "0.5", "--also", "memory=8.2kB").exit_code == 0


def test_a_network_of_which_nothing_can_go_is_refused_before_the_plan(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halpiee.Structure, "prunable", ())
    text = refusal(profile, UsageError, "--budget", "0.5")
    assert "none of the 10 layers can lose channels" in text
    assert "`halpiee explain separable:build` says where" in text
