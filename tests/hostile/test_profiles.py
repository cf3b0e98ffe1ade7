"""Malformed profiles: one sentence that names the line and the field, or a profile that selects."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import halpiee
from halpiee.errors import ProfileError
from halpiee.zoo import build
from latency import Profile
from latency.inspect import inspect

from .conftest import content, one_sentence, refusal
from .mutations import mutated, spoiled
from .test_plans import MANY


@cache
def structure() -> halpiee.Structure:
    return halpiee.trace(build("resnet20", width=0.25, num_classes=4).eval(), (torch.zeros(1, 3, 8, 8),))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("valid") / "p.jsonl"
    cells = {}
    for timed in structure().ops:
        c_in, c_out = timed.op.c_in, timed.op.c_out
        for i, o in itertools.product(range(1, c_in + 1), range(1, c_out + 1)):
            if not timed.op.diagonal or i * c_out == o * c_in:
                key = timed.op.with_channels(i, o).key()
                cells[json.dumps(key)] = {**key, "us": 1 + i * o / 10, "role": "sweep", "steps": [1, 1]}
    Profile({}, cells.values()).save(path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    extra = {
        "ci_lo": 1.0,
        "ci_hi": 2.0,
        "n": 9,
        "method": "twin",
        "contention": 0.0,
        "slowdown": 1.0,
        "tactic": None,
    }
    extra |= {
        "time": 1795333487,
        "env": "abc",
        "pattern": [[0.5, 1.0], None],
        "slow": [[16, 9.1], None],
        "image": True,
    }
    found[0]["environment"] |= {
        "id": "abc",
        "device": "a CPU",
        "threads": 1,
        "dtype": "float32",
        "cpu_caches": {},
    }
    found[1] |= extra
    found[2] |= extra
    return found


@pytest.mark.slow
def test_a_malformed_profile_is_refused_in_one_sentence_or_prices_a_network(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    refused = []
    whole = [json.dumps(line).encode() for line in lines]

    def use() -> None:
        profile = Profile.load(path)
        inspect(profile).warnings  # noqa: B018
        cost = halpiee.LatencyCost(structure(), profile)
        scores = {g.name: torch.ones(g.size) for g in structure().prunable}
        halpiee.select(scores, cost, 0.8 * cost.dense_us)

    @st.composite
    def files(draw: st.DrawFn) -> bytes:
        at = draw(st.integers(0, 4))
        text = list(whole)
        text[at] = json.dumps(draw(mutated(lines[at]))).encode()
        return b"\n".join(text) + b"\n"

    @MANY
    @given(st.one_of(files(), files(), spoiled(b"\n".join(whole[:4]) + b"\n")))
    def one(text: bytes) -> None:
        path.write_bytes(text)
        said = refusal(use)
        assert said is None or one_sentence(said), said
        refused.extend([said] * (said is not None))
        assert content(tmp_path) == {"p.jsonl": text}

    one()
    assert len(refused) > 250


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"us": "12"}, "holds '12' at us, where float is expected"),
        ({"us": True}, "holds True at us, where float is expected"),
        ({"us": 0}, "holds 0 at us, where float > 0.0 is expected"),
        ({"us": -3.5}, "holds -3.5 at us, where float > 0.0 is expected"),
        ({"us": float("nan")}, "holds nan at us, where float"),
        ({"us": 1e300}, "holds 1e+300 at us, where float <= 1000000000000.0 is expected"),
        ({"c_in": "16"}, "holds '16' at c_in, where int is expected"),
        ({"c_out": 2**40}, "holds 1099511627776 at c_out, where int <= 1048576 is expected"),
        ({"kernel": 3}, "holds 3 at kernel, where array is expected"),
        ({"steps": [0, 4]}, "holds 0 at steps[0], where int >= 1 is expected"),
        ({"slow": [[0, 9.1], None]}, "holds 0 at slow[0][0], where int >= 1 is expected"),
        ({"pattern": [[1.0, 0.5], None]}, "contradicts itself: it states the pattern [1.0, 0.5]"),
        ({"groups": 3}, "channels in 3 groups"),
        ({"tail": "relu"}, "holds 'relu' at tail, where array is expected"),
    ],
)
def test_a_wrong_cell_is_named_with_line_and_field(
    changes: dict[str, Any], said: str, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        "\n".join(json.dumps(line) for line in [lines[0], lines[3], {**lines[4], **changes}, lines[5]]) + "\n"
    )
    with pytest.raises(ProfileError) as found:
        Profile.load(path)
    assert said in str(found.value)
    assert str(found.value).startswith(f"{path} was read as a profile; line 3 ")


def test_a_wrong_environment_is_named(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    head = {**lines[0], "environment": {**lines[0]["environment"], "threads": "one"}}
    path.write_text(json.dumps(head) + "\n" + json.dumps(lines[1]) + "\n")
    with pytest.raises(
        ProfileError, match="the environment in line 1 holds 'one' at threads, where int is expected"
    ):
        Profile.load(path)
