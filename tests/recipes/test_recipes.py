"""The papers' settings as files: the figures that are printed, and that a scaled-down run of each trains."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.methods import iee
from halpiee.methods.phases import Train, update_steps
from halpiee.options import nested
from halpiee.ranges import annotated
from halpiee.recipes import STEPS, names, read, shortened, told, under
from halpiee.sparsity import Uniform
from halpiee.training import stage
from halpiee.training.build import budget_of, learning_rate, network
from halpiee.training.config import OPTIONS, Settings
from halpiee.training.preflight import open_run
from tests.training.talk import Quiet, one_thread, trained

# epochs, batch, rate, drops (in epochs), factor, weight decay, and the method's own figures
GRANET = (160, 128, 0.1, (80, 120), 0.1, 5e-4)
IMAGENET = (100, 64, 0.1, (30, 60, 90), 0.1, 1e-4)
S3 = {
    "cifar": (160, 128, 0.1, (80, 120), 0.1, 1e-4),
    "tinyimagenet": (200, 256, 0.2, (100, 150), 0.1, 1e-4),
    "imagenet": (90, 1024, 0.4, (30, 60, 80), 0.1, 1e-4),
}
WRN = tuple(30_000 * i / 390 for i in range(1, 4))  # every 30,000 steps, 390 an epoch
PRINTED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "granet-cifar": (GRANET, {"interval": 1000, "initial": 0.0, "fraction": 0.5, "last": 110 / 160}),
    "granet-erk-cifar": (GRANET, {"interval": 1000, "initial": 0.5, "fraction": 0.5, "last": 80 / 160}),
    "granet-2x-cifar": (
        (320, 128, 0.1, (160, 240), 0.1, 5e-4),
        {"interval": 1000, "initial": 0.0, "last": 220 / 320},
    ),
    "gmp-cifar": (GRANET, {"interval": 1000, "last": 110 / 160, "distribution": "global"}),
    "granet-imagenet": (IMAGENET, {"interval": 4000, "initial": 0.0, "last": 0.3}),
    "granet-erk-imagenet": (IMAGENET, {"interval": 4000, "initial": 0.5, "last": 0.3}),
    "rigl-cifar": (
        (250, 128, 0.1, WRN, 0.2, 5e-4),
        {"interval": 100, "fraction": 0.3, "last": 75_000 / 97_500, "distribution": "erk"},
    ),
    "rigl-imagenet": ((100, 4096), {"interval": 100, "fraction": 0.3, "last": 25_000 / 32_000}),
    "gmp-imagenet": (
        (100, 4096),
        {"interval": 1000, "first": 10 / 32, "last": 25 / 32, "distribution": "uniform"},
    ),
    "rigl-itop-cifar": (GRANET, {"interval": 4000, "fraction": 0.5, "distribution": "erk"}),
    "set-itop-cifar": (GRANET, {"interval": 1500, "fraction": 0.5, "distribution": "erk"}),
    "rigl-itop-imagenet": ((100, 128, 0.1, (30, 60, 90), 0.1, 1e-4), {"interval": 4000, "fraction": 0.5}),
    "iee-cifar": ((250, 128, 0.1, WRN, 0.2, 5e-4), {"end": 0.75, "omega": 0.3, "h": 150, "j": 150, "q": 150}),
    "iee-cifar-500": (
        (500, 128, 0.1, tuple(30_000 * i / 390 for i in range(1, 7)), 0.2, 5e-4),
        {"end": 0.75, "omega": 0.3},
    ),
    "iee-imagenet": (
        (100, 1024, 1.024, (), 0.1, 3.05e-5),
        {
            "warmup": 0.08,
            "momentum": 0.875,
            "label_smoothing": 0.1,
            "h": 150,
            "j": 150,
            "q": 150,
            "end": 0.75,
        },
    ),
    "iee-2-4-imagenet": (
        (100, 1024, 1.024, (), 0.1, 3.05e-5),
        {"distribution": "nm", "nm": "2:4", "h": 150, "j": 150, "q": 150, "end": 0.75},
    ),
    "granet-uniform-imagenet": (IMAGENET, {"interval": 4000, "last": 0.3, "distribution": "uniform"}),
    "gmp-uniform-imagenet": (IMAGENET, {"interval": 4000, "last": 0.3, "distribution": "uniform"}),
    "iee-structured-imagenet": (
        (130, 1024, 1.024, (), 0.1, 3.05e-5),
        {
            "warmup": 8 / 130,
            "momentum": 0.875,
            "label_smoothing": 0.1,
            "end": 5 / 130,
            "omega": 0.3,
            "q": 150,
            "protect_first": True,
        },
    ),
    "iee-ssd512-voc": (
        (900, 32, 8e-3, (700, 800, 840, 870)),
        {"warmup": 50 / 900, "drop_factors": (3 / 8, 1 / 3, 2 / 5, 1 / 10), "end": 5 / 130, "omega": 0.3},
    ),
    "halp-imagenet": (
        (90, 1024, 1.024, (), 0.1, 3.05e-5),
        {
            "warmup": 8 / 90,
            "momentum": 0.875,
            "label_smoothing": 0.1,
            "interval": 40,
            "rounds": 30,
            "protect_first": True,
        },
    ),
    "filter-cifar": (
        (160, 128, 0.1, (80, 120), 0.1, 1e-4),
        {"rounds": 25, "interval": 390, "criterion": "loss-magnitude", "sparsity": 0.65},
    ),
    **{
        f"at-init-{k}": (v, {"momentum": 0.9, "method": "snip", "norm_init": "uniform"})
        for k, v in S3.items()
    },
    **{f"lrr-{k}": (v, {"momentum": 0.9, "method": "lrr"}) for k, v in S3.items()},
    "ltr-cifar": (S3["cifar"], {"rewind": 1000}),
    "ltr-vgg16-cifar": (S3["cifar"], {"rewind": 2000}),
    "ltr-tinyimagenet": (S3["tinyimagenet"], {"rewind": 1000}),
    "ltr-imagenet": (S3["imagenet"], {"rewind": 6255}),
}


def settings(name: str, **over: Any) -> Settings:
    options = {"model": "toy:net", "data": "toy:data", **read(name).options, **over}
    if options["method"] == "halp":
        options["weights"] = "w.safetensors"
    return Settings.from_dict(nested(Settings, options))


def test_every_recipe_is_held_to_its_print() -> None:
    assert set(names()) == set(PRINTED)


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_a_recipe_has_the_figures_that_are_printed(name: str) -> None:
    schedule, others = PRINTED[name]
    s = settings(name)
    found = (s.epochs, s.batch_size, s.lr, tuple(d * s.epochs for d in s.drops), s.drop, s.weight_decay)
    for value, printed in zip(found, schedule, strict=False):
        assert value == pytest.approx(printed)
    options = read(name).options
    for key, printed in others.items():
        part = OPTIONS[key].part
        assert getattr(s if part is None else getattr(s, part), key) == pytest.approx(printed), key
        assert options[key] == pytest.approx(printed), key


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_a_recipe_says_where_it_is_printed_and_what_is_left_open(name: str) -> None:
    recipe = read(name)
    assert recipe.about
    assert "arXiv" in recipe.source or recipe.source.startswith("Advancing Weight and Channel")
    assert recipe.open
    assert all(": " not in note for note in recipe.open)


@pytest.mark.parametrize("name", [n for n in sorted(PRINTED) if n.endswith(("cifar", "cifar-500"))])
def test_a_scaled_down_run_of_each_cifar_recipe_trains_to_its_sparsity(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "pick_threads", one_thread)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    short = {"epochs": 2, "batch_size": 12, "interval": 2, "h": 2, "j": 1, "q": 1, "rewind": 3}
    short = {
        key: value for key, value in short.items() if key in {"epochs", "batch_size", *read(name).options}
    }
    if name == "filter-cifar":
        short |= {"rounds": 3}
    given = settings(name, **short)
    run = open_run(given, tmp_path / "run", Quiet())
    found = trained(run)
    total = found["sparsity"]["total"]
    sparsity = given.masks.sparsity
    assert sparsity is not None
    assert found["sparsity"]["kept"] == found["sparsity"]["asked"]
    assert found["sparsity"]["kept"] / total == pytest.approx(1 - sparsity, abs=1.5 / total)


def test_the_rate_of_the_detector_falls_by_a_factor_of_its_own_at_each_drop() -> None:
    """After a warm-up of 50 of 900 epochs 8e-3, times 3/8, 1/3, 2/5 and 1/10: 3e-3, 1e-3, 4e-4 and 4e-5."""
    s = settings("iee-ssd512-voc")
    rates = [learning_rate(10 * epoch + 5, s, 9000) for epoch in (25, 50, 699, 700, 800, 840, 870, 899)]
    assert rates == pytest.approx([8e-3 * 0.51, 8e-3, 8e-3, 3e-3, 1e-3, 4e-4, 4e-5, 4e-5], rel=5e-3)


def test_a_file_of_ones_own_takes_options_with_hyphens_and_shares(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "method: rigl\nsparsity: 0.95\nbatch-size: 32\nlr: 1e-1\ndrops: [10/40, 0.5]\nnesterov: no\nbudget:\n"
    )
    recipe = read(file)
    assert recipe.options == {
        "method": "rigl",
        "sparsity": 0.95,
        "batch_size": 32,
        "lr": 0.1,
        "drops": (0.25, 0.5),
        "nesterov": False,
        "budget": None,
    }
    assert recipe.source == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sparsety: 0.9\n",
            r"--recipe .*r\.yaml holds 'sparsety', which is no option .*; did you mean 'sparsity'\?",
        ),
        ("batch-sise: 9\n", "did you mean 'batch-size'"),
        ("epochs: many\n", r"r\.yaml hold 'epochs': 'many' \(str\); it takes a whole number"),
        ("epochs: true\n", r"'epochs': True \(bool\); it takes a whole number"),
        ("lr: fast\n", "it takes a number or a share such as 80/160"),
        ("drops: [80/0]\n", "it takes a list, each a number or a share"),
        ("freeze: 1\n", "it takes true or false"),
        ("distribution: even\n", "it takes 'uniform', 'erk', 'global', 'nm'"),
        ("h: 1.5\n", "'h': 1.5 .float.; it takes a whole number"),
        ("- epochs\n", "holds list where options were wanted"),
        ("", "holds NoneType where options were wanted"),
        ("3: 4\n", "holds dict where options were wanted"),
        ("a: [1\n", r"r\.yaml is not YAML: while parsing"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_wrong_names_itself_the_key_and_the_nearest_known(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read(file)


def test_an_unknown_name_gets_the_closest_recipe() -> None:
    with pytest.raises(UsageError, match="neither a file nor a recipe; did you mean 'granet-cifar'"):
        read("granet-cifr")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot be read .*; give a YAML file"):
        read(tmp_path / "r.yaml")


def test_recipes_ship_inside_the_package() -> None:
    shipped = {f.name for f in files("halpiee.recipes").iterdir()}
    assert {f"{name}.yaml" for name in PRINTED} <= shipped


def test_shares_scale_with_the_epochs_that_are_given_instead() -> None:
    s = settings("granet-cifar", epochs=16)
    assert tuple(d * s.epochs for d in s.drops) == (8, 12)
    assert s.masks.last == 110 / 160
    assert replace(s, epochs=160).digest == settings("granet-cifar").digest


def short(name: str, scale: float, **typed: Any) -> Settings:
    """A recipe's settings at a scale, with options that were typed beside it."""
    made = shortened({**under(read(name).options, typed), **typed}, scale)
    return Settings.from_dict(nested(Settings, {"model": "toy:net", "data": "toy:data", **made}))


def test_a_hundredth_of_iees_imagenet_recipe_has_the_schedule_worked_out_by_hand() -> None:
    """130 epochs become ⌈1.3⌉ = 2 of ⌊1,281,167 / 1024⌋ = 1251 steps, and 150 steps become 150 · 2/130 ≈ 2."""
    s, total = short("iee-structured-imagenet", 0.01), 2 * 1251
    assert s.epochs == 2
    assert s.cycle_steps(total) == (2, 2, 2)
    step, events = 0, []
    for phase in iee.recipe(
        iee.Options(h=2, j=2, q=2, end=s.cycle.end), total_steps=total, omega=lambda _: 0.3
    ):
        step += phase.steps if isinstance(phase, Train) else 0
        events += [] if isinstance(phase, Train) else [(type(phase).__name__, step)]
    # updates end at 5/130 of 2502 steps, after 96: 16 cycles of six
    changes = [(name, 6 * cycle + at) for cycle in range(16) for name, at in (("Drop", 2), ("Grow", 6))]
    assert events == [("Start", 0), *changes]
    # the warm-up is 8/130 of 2502 steps, 154; then half a cosine to zero over the other 2348
    rates = [
        learning_rate(step, s, total) / 1.024 for step in (0, 76, 153, 154 + 587, 154 + 1174, 154 + 1761)
    ]
    assert rates == pytest.approx([1 / 154, 0.5, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def test_a_hundredth_of_granets_imagenet_recipe_prunes_as_often_as_the_whole_one() -> None:
    """An epoch of ⌊1,281,167 / 64⌋ = 20,018 steps; both prune 150 times, in the first 30 of 100 epochs."""
    s, whole = short("granet-imagenet", 0.01), settings("granet-imagenet")
    assert (s.epochs, s.masks.interval, s.masks.last) == (1, 40, 0.3)
    assert list(update_steps(20_018, 40, 0.3)) == list(range(40, 6001, 40))
    assert len(update_steps(100 * 20_018, whole.masks.interval or 0, 0.3)) == 150
    rates = {step: learning_rate(step, s, 20_018) for step in (0, 6004, 6005, 12_010, 12_011, 18_015, 18_016)}
    by_hand = {0: 0.1, 6004: 0.1, 6005: 0.01, 12_010: 0.01, 12_011: 1e-3, 18_015: 1e-3, 18_016: 1e-4}
    assert rates == pytest.approx(by_hand)


def test_a_scale_shortens_what_is_typed_too_and_says_what_it_became() -> None:
    typed = {"sparsity": 0.9, "epochs": 100, "interval": 50, "first": 0.0}
    before = {**under(read("gmp-cifar").options, typed), **typed}
    after = shortened(before, 0.07)
    assert (after["epochs"], after["interval"]) == (7, 4)  # 3.5 steps, to the even number
    assert {key for key in before if before[key] != after[key]} == {"epochs", "interval"}
    assert told(before, after) == (
        "epochs 100 → 7; interval 50 → 4 steps; drops 50,75 → 3.5,5.25 epochs; last 68.75 → 4.812 epochs"
    )
    assert shortened({}, 0.5) == {"epochs": 10}  # of the 20 of `halpiee train`
    assert shortened({"epochs": 4, "h": 3, "j": 0}, 1e-9) == {"epochs": 1, "h": 1, "j": 0}


def test_every_option_in_steps_is_shortened() -> None:
    """``bad_images`` has the same range, and counts images."""
    kinds = [annotated(hint) for hint in (ranges.Steps, ranges.StepsOrNone)]
    counted = {name for name, one in OPTIONS.items() if annotated(one.hint) in kinds}
    assert set(STEPS) == counted - {"bad_images"}


def uniform(name: str, **over: Any) -> Uniform:
    found = budget_of(settings(name, **over))
    assert isinstance(found, Uniform)
    return found


def test_uniform_budgets_of_gmp_and_granet_differ_as_their_papers_have_it() -> None:
    """GMP keeps the first layer, and a fifth of the last, beside the total; GraNet pays for that fifth."""
    gmp, granet = (uniform(f"{name}-uniform-imagenet") for name in ("gmp", "granet"))
    shapes = {"first": (10, 10), "middle": (100, 100), "last": (10, 10)}
    assert gmp.densities(shapes) == pytest.approx({"first": 1.0, "middle": 0.2, "last": 0.2})
    assert granet.densities(shapes) == pytest.approx({"first": 0.2, "middle": 0.2, "last": 0.2})
    found = uniform("granet-uniform-imagenet", sparsity=0.9).densities(shapes)
    assert found["last"] == pytest.approx(0.2)
    assert 100 * found["first"] + 10_000 * found["middle"] + 100 * 0.2 == pytest.approx(0.1 * 10_200)


def test_networks_of_pruning_at_initialisation_draw_the_scales_of_their_norms() -> None:
    def scales(seed: int) -> torch.Tensor:
        model = network(settings("at-init-cifar", model="resnet20", seed=seed), 10)
        return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])

    one = scales(0)
    assert 0 <= float(one.min()) < 0.02
    assert 0.98 < float(one.max()) <= 1
    assert float(one.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(one.std()) == pytest.approx(12**-0.5, abs=0.02)  # of U(0, 1)
    assert not torch.equal(one, scales(1))
