"""``halpiee plan`` from a made-up profile: what is chosen, what is said, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import halpiee
from halpiee.cli.app import program
from halpiee.cli.scoring import filter_norms
from halpiee.errors import BudgetError, HalpieeError, OutputInUseError, ProfileError, UsageError
from halpiee.zoo import build
from latency import Op, Profile
from latency.backends import Built

SIZES = ("--size", "3x16x16")


@pytest.fixture(scope="module")
def structure() -> halpiee.Structure:
    return halpiee.trace(build("mobilenet_v1_cifar", width=0.25).eval(), (torch.zeros(1, 3, 16, 16),))


def write_profile(structure: halpiee.Structure, path: Path, *, batch: int = 1) -> Path:
    """Every op costs 1 + C_in·C_out/10 (a depthwise one 1 + C) µs per image, at multiples of 4."""
    cells = {}
    for timed in structure.ops:
        ins, outs = (range(4, c + 1, 4) if c % 4 == 0 else [c] for c in (timed.op.c_in, timed.op.c_out))
        for i, o in itertools.product(ins, outs):
            if timed.op.diagonal and i * timed.op.c_out != o * timed.op.c_in:
                continue
            key = {**timed.op.with_channels(i, o).key(), "batch": batch}
            cost = 1 + (i if timed.op.diagonal else i * o / 10)
            cells[json.dumps(key)] = {**key, "us": batch * cost, "role": "sweep", "steps": [4, 4]}
    Profile({}, cells.values()).save(path)
    return path


@pytest.fixture(scope="module")
def profile(structure: halpiee.Structure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile(structure, tmp_path_factory.mktemp("profile") / "one.jsonl")


def run(profile: Path, *options: str) -> Result:
    base = ["plan", "mobilenet_v1_cifar", "--width", "0.25", *SIZES, "--profile", str(profile)]
    return CliRunner().invoke(program, [*base, *options])


def plan(profile: Path, *options: str) -> dict:
    shown = run(profile, "--json", *options)
    assert shown.exception is None, shown.exception
    return json.loads(shown.stdout)


def refusal(profile: Path, kind: type[HalpieeError], *options: str) -> str:
    shown = run(profile, *options)
    assert isinstance(shown.exception, kind), shown.output
    return str(shown.exception)


def test_the_plan_meets_its_budget_and_says_what_was_scored(profile: Path) -> None:
    found = plan(profile, "--budget", "0.5")
    assert found["predicted_us"] <= found["budget_us"] == pytest.approx(0.5 * found["dense_us"])
    assert 0 <= found["gap"] <= 1e-3
    assert found["slack_us"] < found["next_step_us"]
    assert found["scores"].startswith("L2 norms of the untrained filters")
    assert found["protected"] == []
    assert all(count % 4 == 0 for count, _ in found["groups"].values())


def test_untrained_filters_are_scored_by_their_norms() -> None:
    model = build("resnet20", width=0.25).eval()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 8, 8),))
    norms = filter_norms(model, structure)
    inner = model.get_submodule("layers.0.0.conv1").weight
    expected = inner.detach().double().square().sum(dim=(1, 2, 3)).sqrt()
    assert torch.allclose(norms["layers.0.0.conv1"], expected)
    # The stream is written by the stem and by three blocks: their squares add up.
    writers = [model.get_submodule(n).weight for n in ("conv1", *(f"layers.0.{i}.conv2" for i in range(3)))]
    squares = sum(w.detach().double().square().sum(dim=(1, 2, 3)) for w in writers)
    assert torch.allclose(norms["conv1"], squares.sqrt())


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

    model = build("mobilenet_v1_cifar", width=0.25)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found = plan(profile, "--budget", "0.5", "--weights", str(tmp_path / "weights.safetensors"))
    assert found["scores"] == "magnitude of the weights given"


def test_the_first_group_is_protected_where_that_is_asked(
    structure: halpiee.Structure, profile: Path
) -> None:
    first = structure.prunable[0].name
    found = plan(profile, "--budget", "0.3", "--protect-first", "--freeze", structure.prunable[2].name)
    assert found["protected"] == sorted([first, structure.prunable[2].name])
    for name in found["protected"]:
        assert found["groups"][name][0] == found["groups"][name][1]


def test_least_most_multiple_and_ranges_are_kept(structure: halpiee.Structure, profile: Path) -> None:
    one = structure.prunable[1].name
    found = plan(
        profile,
        "--budget",
        "0.6",
        "--least",
        "0.5",
        "--most",
        "0.75",
        "--multiple",
        "8",
        "--between",
        f"{one}=8..8",
    )
    assert found["groups"][one][0] == 8
    for count, size in found["groups"].values():
        assert count % 8 == 0
        assert size / 2 <= count <= max(0.75 * size, 8)


@pytest.mark.slow
def test_several_limits_are_kept_at_once(structure: halpiee.Structure, profile: Path, tmp_path: Path) -> None:
    second = write_profile(structure, tmp_path / "four.jsonl", batch=4)
    alone = plan(profile, "--budget", "0.6")
    found = plan(
        profile, "--budget", "0.6", "--also", "macs=0.4", "--also", f"{second}=0.5", "--also", "memory=0.8",
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
    fresh = build("mobilenet_v1_cifar", width=0.25).eval()
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
        (("--budget", "0.5", "--also", "params=10"), BudgetError, "--also params: at most 10 was asked"),
        (("--budget", "0.5", "--also", "macs=0.5", "--sweep"), UsageError, "leave one of the two out"),
        (("--budget", "0.5", "--between", "x"), UsageError, "give GROUP=FEWEST..MOST"),
        (
            ("--budget", "0.5", "--freeze", "classifierr"),
            UsageError,
            "`halpiee explain mobilenet_v1_cifar --size 16 --width 0.25` lists",
        ),
        (
            ("--budget", "0.5", "--freeze", "featurs.0"),
            UsageError,
            "--freeze featurs.0 was asked, a group that the",
        ),
        (("--budget", "0.5", "--freeze", "featurs.0"), UsageError, "near it are features.0"),
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
    structure: halpiee.Structure, profile: Path, tmp_path: Path, change, text: str
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


class Formula:
    """A runtime whose ops take 1 + 0.1·blocks_in·blocks_out µs, in blocks of four channels."""

    name, kind, now_us = "formula", "cpu", 0.0

    def environment(self) -> dict[str, object]:
        return {"backend": self.name, "threads": 1}

    def clock(self) -> Formula:
        return self

    def anchor(self) -> None:
        return None

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        begun = self.now_us
        run()
        return self.now_us - begun, self.now_us - begun

    def build(self, op: Op) -> Built:
        def run() -> None:
            self.now_us += 1 + 0.1 * -(-op.c_in // 4) * (1 if op.diagonal else -(-op.c_out // 4))

        return Built(run=run)


def test_a_lazy_plan_starts_from_no_profile_and_leaves_one_that_plans_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency.backends.load", lambda *_, **__: Formula())
    path = tmp_path / "new.jsonl"
    base = ["plan", "resnet20", "--size", "3x8x8", "--profile", str(path), "--budget", "0.5"]
    first = CliRunner().invoke(program, [*base, "--lazy", "--json"])
    assert first.exception is None, first.exception
    held = path.read_bytes()
    second = CliRunner().invoke(program, [*base, "--json"])
    lazy, again = json.loads(first.stdout), json.loads(second.stdout)
    assert lazy["groups"] == again["groups"]
    assert lazy["interpolated"] == []
    assert lazy["predicted_us"] <= lazy["budget_us"]
    assert path.read_bytes() == held


MINE = "halpiee profile mobilenet_v1_cifar --size {} --width 0.25"


def test_a_profile_in_half_precision_and_nhwc_prices_the_same_network(
    structure: halpiee.Structure, profile: Path, tmp_path: Path
) -> None:
    cells = [cell | {"dtype": "bfloat16", "layout": "nhwc"} for cell in Profile.load(profile).cells]
    cells += [cell | {"batch": 3, "role": "probe"} for cell in cells[:4]]
    Profile({"backend": "torch", "dtype": "bfloat16"}, cells).save(tmp_path / "half.jsonl")
    full, half = (plan(path, "--budget", "0.5") for path in (profile, tmp_path / "half.jsonl"))
    assert half["batch"] == 1
    assert half["predicted_us"] == pytest.approx(full["predicted_us"])
    assert half["groups"] == full["groups"]


@pytest.mark.parametrize(
    ("options", "measuring"),
    [
        (("--batch", "8"), MINE.format(16) + " --batch 8 --out FILE"),
        (("--size", "24"), MINE.format(24) + " --out FILE"),
        (("--size", "24x16", "--classes", "7"), MINE.format("3x24x16") + " --classes 7 --out FILE"),
    ],
)
def test_a_profile_of_another_batch_or_image_is_told_from_what_was_asked(
    profile: Path, options: tuple[str, ...], measuring: str
) -> None:
    cells = len(Profile.load(profile).cells)
    text = refusal(profile, ProfileError, "--budget", "0.5", *options)
    assert text.startswith(
        f"--profile {profile} holds {cells:,} cells at batch 1 on inputs of up to 16×16; it lacks "
    )
    assert text.endswith(f"measure them with `{measuring}`")


def test_a_profile_without_cells_is_continued_by_the_command_that_made_it(tmp_path: Path) -> None:
    Profile({"threads": 2}, []).save(tmp_path / "cut.jsonl")
    text = refusal(tmp_path / "cut.jsonl", ProfileError, "--budget", "0.5")
    assert text == (
        f"{tmp_path / 'cut.jsonl'} holds no cells (its sweep was cut short); `{MINE.format(16)} "
        f"--out {tmp_path / 'cut.jsonl'}` continues it"
    )


def test_the_command_that_follows_a_profile_builds_the_same_network(
    tmp_path: Path, structure: halpiee.Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.jsonl"
    made = Profile.load(write_profile(structure, tmp_path / "made.jsonl"))
    monkeypatch.setattr("latency.sweep", lambda *_, **__: made)
    base = ["profile", "mobilenet_v1_cifar", "--width", "0.25", "--classes", "7", "--batch", "2", *SIZES]
    shown = CliRunner().invoke(program, [*base, "--out", str(out)])
    assert shown.output.splitlines()[-1] == (
        "next: halpiee plan mobilenet_v1_cifar --size 16 --width 0.25 --classes 7 --batch 2 "
        f"--profile {out} --budget 0.5"
    )


ATTENDING = """
from torch import nn
from torch.nn import functional


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        rows = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(functional.scaled_dot_product_attention(rows, rows, rows).mean(1))


class Asking(nn.Module):
    def __init__(self, depth):
        super().__init__()


def build():
    return Attending().eval()
"""


@pytest.fixture
def attending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The beginning of a plan of a network of the user's with attention, which no profile prices."""
    (tmp_path / "attending_nets.py").write_text(ATTENDING)
    monkeypatch.syspath_prepend(str(tmp_path))
    from attending_nets import build as own

    traced = halpiee.trace(own(), (torch.zeros(1, 3, 4, 4),))
    path = write_profile(traced, tmp_path / "own.jsonl")
    return ["plan", "attending_nets:build", "--size", "4", "--profile", str(path)]


@pytest.mark.parametrize("budget", ["1.0", "100us"])
def test_what_no_profile_prices_is_said(attending: list[str], budget: str) -> None:
    shown = CliRunner().invoke(program, [*attending, "--budget", budget])
    assert shown.exception is None, shown.exception
    said = " ".join(shown.output.split())
    assert "not priced: bmm ×2; " in said
    assert ("so the network takes longer than the 100us asked" in said) == (budget == "100us")
    assert ("warning: not priced" in said) == (budget == "100us")
    assert "`halpiee train` calibrates with whole networks" in said
    found = json.loads(CliRunner().invoke(program, [*attending, "--budget", budget, "--json"]).stdout)
    assert found["untimed"] == {"bmm": 2}
    assert any("not priced" in note for note in found["notes"])


def test_a_size_that_the_network_does_not_take_is_named(attending: list[str]) -> None:
    attending[attending.index("4")] = "1x4x4"
    shown = CliRunner().invoke(program, [*attending, "--budget", "0.5"])
    text = str(shown.exception)
    assert text.startswith(
        "attending_nets:build was to take images of --size 1x4x4: the forward of Attending fails"
    )
    assert text.endswith("give the size that it takes with --size")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("attending_nets.py:build", "write attending_nets:build, from the folder that holds it"),
        ("attending_nets:Asking", "to build it needs depth; name a function that needs no arguments"),
    ],
)
def test_a_network_of_your_own_is_named_by_a_function_without_arguments(
    attending: list[str], model: str, text: str
) -> None:
    attending[1] = model
    assert text in str(CliRunner().invoke(program, [*attending, "--budget", "0.5"]).exception)
