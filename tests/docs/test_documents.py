"""The documents keep their form, their links lead somewhere, and the commands that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from halpiee.methods.registry import METHODS
from tools.docs_pages import ELSEWHERE, PACKAGES, api_page, public_names, recipes_page, relocated

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
DOCUMENTS = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


MADE = {*ELSEWHERE.values(), "recipes.md", "api/index.md"}


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", DECISIONS, ids=names)
def test_a_decision_has_its_four_parts_in_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = re.findall(r"^(?:\*\*|#+ )?(Context|Decision|Consequence|Evidence)s?\b", text, re.MULTILINE)
    assert parts == ["Context", "Decision", "Consequence", "Evidence"]
    assert re.match(rf"# {page.name[:4]}\b", text)
    assert "`" in text[text.rindex("Evidence") :]


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
            made = (page.parent / target).resolve().relative_to(ROOT)  # pages that the site makes
            assert (page.parent / target).exists() or str(made).removeprefix("docs/") in MADE, target


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


def test_the_lines_of_the_architecture_are_the_layers_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["halpiee"])
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    lines = text.split("```")[1].partition("─")[0].strip().splitlines()
    drawn = [step for line in lines for step in line.split("   ")[0].split(" / ")]
    assert ["__main__", *(step.replace(" · ", " | ") for step in drawn)] == layers


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if page.name != "CHANGELOG.md"], ids=names)
def test_every_source_file_that_a_document_names_is_there(page: Path) -> None:
    text = re.sub(
        r"`[^`]+` (?:and `[^`]+` were two such scripts|of commit)", "", page.read_text(encoding="utf-8")
    )
    for path in re.findall(r"`((?:halpiee|latency|tests|tools|examples)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_the_methods_page_names_the_file_of_every_method_of_its_table() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = text[text.index("| method | recipe") :].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    seen = 0
    for words, *_, where in rows:
        for name in re.split(r", | pruning", words.lower()):
            if name in METHODS:
                assert METHODS[name].module == f"halpiee.methods.{where.split('`')[1].removesuffix('.py')}", (
                    name
                )
                seen += 1
    assert seen >= 15


def test_the_reasons_of_frozen_groups_stand_in_the_files_that_the_page_names() -> None:
    text = (DOCS / "structure.md").read_text(encoding="utf-8")
    table = text[text.index("| reason | decided in") :].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) == 7
    for reasons, places in rows:
        files = [ROOT / "halpiee" / "structure" / place for place in re.findall(r"`([\w/]+\.py)`", places)]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        for reason in re.findall(r"`([^`]+)`", reasons):
            assert reason in code, reason


def test_the_page_of_a_package_has_every_public_name_once() -> None:
    assert {"trace", "IEE", "LatencyCost", "criterion"} <= set(public_names("halpiee"))
    for package in PACKAGES:
        page = api_page(package)
        for name in public_names(package):
            if f"{package}.{name}" not in PACKAGES:
                assert page.count(f"::: {package}.{name}\n") == 1, name


def test_the_page_of_recipes_has_each_recipe_with_what_its_source_leaves_open() -> None:
    page = recipes_page()
    for path in (ROOT / "halpiee" / "recipes").glob("*.yaml"):
        assert f"## {path.stem}\n" in page
    assert "H, J and Q are not printed for CIFAR; here those of ImageNet, 150 each" in page


def test_links_of_the_roots_documents_lead_to_pages_or_become_code() -> None:
    text = "[a](docs/a.md) [b](CHANGELOG.md) [c](https://example.org/) [x.py](x.py) [that](tools/x.py)"
    expected = "[a](a.md) [b](changelog.md) [c](https://example.org/) `x.py` that (`tools/x.py`)"
    assert relocated(text, "") == expected
    assert relocated("[x.py](x.py)", "examples/") == "`examples/x.py`"


def test_every_document_stands_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        path = str(page.relative_to(DOCS))
        assert path in menu or path.startswith("decisions/"), path
