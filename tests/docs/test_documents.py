"""The documents keep their form, their links lead somewhere, and the commands that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
DOCUMENTS = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", DECISIONS, ids=names)
def test_a_decision_has_its_four_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = [text.find(part) for part in ("Context.", "Decision.", "Consequence", "Evidence.")]
    assert -1 not in places
    assert places == sorted(places)
    assert re.match(rf"# {page.name[:4]}\b", text)
    assert "`" in text[places[-1] :]


def test_no_two_decisions_share_a_number() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(numbers) == len(set(numbers))


def selected(command: str) -> list[str]:
    """Returns the tests that a pytest command of a document would run, by their names in the files."""
    words = shlex.split(command.split("#")[0])
    wanted = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
    files: list[Path] = []
    for word in words:
        place = ROOT / word.split("::")[0]
        if word.startswith("tests"):
            assert place.exists(), word
            files += [place] if place.is_file() else place.rglob("test_*.py")
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found += [
                    node.name for part in wanted if part.strip().lower() in f"{file.name}{node.name}".lower()
                ]
    return found


@pytest.mark.parametrize("page", DOCUMENTS, ids=names)
def test_every_pytest_command_of_a_document_runs_something(page: Path) -> None:
    for command in re.findall(
        r"(?:python -m )?pytest (?:-[^\n`]* )?tests[^\n`]*", page.read_text(encoding="utf-8")
    ):
        assert selected(command), command


@pytest.mark.parametrize("page", DOCUMENTS, ids=names)
def test_every_tool_that_a_document_names_is_there(page: Path) -> None:
    for module in re.findall(r"python -m tools\.(\w+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "tools" / f"{module}.py").exists(), module


@pytest.mark.parametrize("page", DOCUMENTS, ids=names)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_the_glossary_has_at_most_forty_words_each_once() -> None:
    words = re.findall(
        r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert 30 <= len(words) <= 40
    assert len(words) == len(set(words))


def test_the_architecture_is_one_page() -> None:
    assert len((DOCS / "architecture.md").read_text(encoding="utf-8").splitlines()) <= 70


def test_every_package_stands_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    missing = [
        package.parent.name
        for package in (ROOT / "halpiee").glob("*/__init__.py")
        if f"`halpiee/{package.parent.name}/`" not in text
    ]
    assert sorted(missing) == ["recipes", "zoo"]
