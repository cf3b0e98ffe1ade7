"""Options as fields: what is read off a dataclass, and that each is written once."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from halpiee import ranges
from halpiee.cli.app import program
from halpiee.cli.options import Answered, Typed, verb
from halpiee.errors import UsageError, unknown
from halpiee.methods.registry import METHODS
from halpiee.options import described, fitted, nested, option, options_of
from halpiee.shared_options import Cycle, Switches
from halpiee.training.config import Masks, Settings
from tools.docs_pages import options_page
from tools.house import functions

ROOT = Path(__file__).parent.parent
VERBS = sorted(program.commands)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rounds: ranges.Rounds = option(7, "Rounds within.", "Inside")


@dataclass(frozen=True, kw_only=True)
class Base:
    seed: ranges.Seed = option(0, "Seed.")


@dataclass(frozen=True, kw_only=True)
class Outer(Base):
    place: Path = field(metadata=described("Where to."))
    rate: ranges.Rate | None = option(None, "Rate.", unset="the paper's")
    kind: Literal["plain", "fancy"] = option("plain", "Kind.")
    shares: tuple[ranges.Between, ...] = option((), "Shares.")
    fast: bool = option(True, "Fast.")
    inner: Inner = field(default_factory=Inner)
    rounds: int = 30


def test_own_options_come_before_inherited_ones_and_those_of_a_part_where_the_part_stands() -> None:
    assert list(options_of(Outer)) == ["place", "rate", "kind", "shares", "fast", "rounds", "seed"]


def test_a_name_in_a_part_and_outside_means_the_part() -> None:
    rounds = options_of(Outer)["rounds"]
    assert (rounds.part, rounds.owner, rounds.default, rounds.help.text) == (
        "inner",
        Inner,
        7,
        "Rounds within.",
    )
    assert nested(Outer, {"rounds": 9, "seed": 1}) == {"inner": {"rounds": 9}, "seed": 1}


def test_what_is_given_replaces_what_was_and_leaves_it_as_it_was() -> None:
    before = {"inner": {"rounds": 3}, "seed": 5}
    assert nested(Outer, {"rounds": 9}, before) == {"inner": {"rounds": 9}, "seed": 5}
    assert before == {"inner": {"rounds": 3}, "seed": 5}


@pytest.mark.parametrize(
    ("name", "typed", "takes", "default", "needed"),
    [
        ("place", "--place", "a path", "", True),
        ("rate", "--rate", "more than 0 and at most 1,000", "the paper's", False),
        ("kind", "--kind", "plain, fancy", "plain", False),
        ("fast", "--fast", "", "yes", False),
        ("seed", "--seed", "at least 0 and at most 2,147,483,647, a whole number", "0", False),
    ],
)
def test_an_option_says_how_it_is_typed_what_it_takes_and_what_it_is_by_default(
    name: str, typed: str, takes: str, default: str, needed: bool
) -> None:
    found = options_of(Outer)[name]
    assert (found.typed, found.takes, found.shown_default, found.required) == (typed, takes, default, needed)


def test_values_of_files_get_the_types_of_their_fields() -> None:
    assert fitted(Outer, {"rate": "1e-4", "shares": ["80/160", 0.75], "fast": True}) == {
        "rate": 1e-4,
        "shares": (0.5, 0.75),
        "fast": True,
    }
    with pytest.raises(UsageError, match=r"x hold 'rate': 2000 .*it takes .*at most 1,000"):
        fitted(Outer, {"rate": 2000}, where="x")


def test_a_verb_gets_its_class_and_what_was_typed_of_another() -> None:
    found: list[object] = []

    @verb("toy", Answered, over=Outer, examples=("toy",))
    def toy(asked: Answered, given: dict[str, object]) -> None:
        """Toys."""
        found.extend([asked, given])

    done = CliRunner().invoke(
        toy, ["--json", "--rate", "0.5", "--no-fast", "--shares", "1/4,0.5", "--rounds", "3"]
    )
    assert done.exit_code == 0, done.output
    given = {"rate": 0.5, "fast": False, "shares": (0.25, 0.5), "rounds": 3}
    assert found == [Answered(as_json=True), given]
    assert re.search(r"Inside:\s+--rounds INTEGER +Rounds within\. +\[default: 7\]", toy_help(toy))


def toy_help(command: click.Command) -> str:
    return CliRunner().invoke(command, ["--help"], prog_name="toy").output


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_a_verb_is_a_field_with_a_sentence_that_repeats_no_default(name: str) -> None:
    for parameter in program.commands[name].params:
        if isinstance(parameter, click.Argument):
            continue
        assert isinstance(parameter, Typed), parameter.name
        text = parameter.option.help.text
        assert re.fullmatch(r"[A-Z`(\d].*[.…]", text), text
        assert "default" not in text.lower(), text


def test_options_of_one_name_that_verbs_share_have_one_default() -> None:
    shared: dict[str, set[object]] = {}
    for name in ("threads", "seed", "width", "classes", "protect_first"):
        for command in program.commands.values():
            for parameter in command.params:
                if isinstance(parameter, Typed) and parameter.name == name:
                    shared.setdefault(name, set()).add(parameter.option.default)
    assert shared == {
        "threads": {1},
        "seed": {0},
        "width": {None},
        "classes": {None},
        "protect_first": {None},
    }


def test_a_training_has_the_switches_of_iee_and_no_default_of_its_own_for_them() -> None:
    mine, theirs = options_of(Cycle), options_of(METHODS["iee"].load().options)
    assert {n for n in mine if n in theirs} == {*options_of(Switches), "h", "j", "q"}
    for name in options_of(Switches):
        assert (mine[name].default, mine[name].help) == (theirs[name].default, theirs[name].help), name


def test_a_method_that_is_asked_for_a_number_of_the_command_line_has_its_default() -> None:
    masks = options_of(Masks)
    for method, name in (("filter", "regrow"), ("snip", "at"), ("granet", "initial")):
        assert options_of(METHODS[method].load().options)[name].default == masks[name].default, method


def test_the_hash_of_a_run_does_not_hang_on_the_order_of_its_settings() -> None:
    settings = Settings(model="resnet20", data="digits", budget="0.5")
    values = settings.as_dict()
    assert set(values) == {f.name for f in fields(Settings)}
    assert Settings.from_dict(dict(reversed(values.items()))).digest == settings.digest


def test_the_page_of_options_is_current() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_page(), "make options"


@pytest.mark.parametrize(
    "line",
    [
        "| `--lr` | more than 0 and at most 1,000 | 0.1 | Peak learning rate. |",
        "| `--baseline`, `--no-baseline` |  | yes | Also train a dense network, to compare with. |",
        "| `--backend` | text | onnxruntime | Runtime that is timed; `halpiee doctor` lists them. |",
    ],
)
def test_the_page_says_of_an_option_what_a_reader_needs(line: str) -> None:
    assert f"\n{line}\n" in options_page()


def test_no_verb_is_long_or_takes_many_arguments() -> None:
    found = []
    for file in (ROOT / "halpiee" / "cli").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [one for one in functions(file, tree) if one.name in {"command", *VERBS}]
    assert len(found) >= len(VERBS)
    assert not [one for one in found if one.lines > 40 or one.parameters > 8]


def test_a_close_name_is_offered_and_else_what_there_is() -> None:
    known = ("magnitude", "taylor")
    assert unknown("magnitud", known) == "did you mean 'magnitude'?"
    assert unknown("magnitud", known, before="; ") == "; did you mean 'magnitude'?"
    assert unknown("x", known, "known are magnitude, taylor") == "known are magnitude, taylor"
    assert unknown("x", known, before="; ") == ""
