"""Pages of the site that are made from what is elsewhere: the API, the recipes, the decisions, the root's documents.

A hook of mkdocs (mkdocs.yml). Names come from each package's ``__all__``, read without
importing it: ``make docs`` needs no torch. ``python -m tools.docs_pages`` (``make options``) writes docs/options.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent

PACKAGES = (
    "halpiee",
    "halpiee.structure",
    "halpiee.selection",
    "halpiee.saliency",
    "halpiee.sparsity",
    "halpiee.methods",
    "halpiee.reconstruction",
    "halpiee.analysis",
    "halpiee.deploy",
    "halpiee.report",
    "halpiee.zoo",
    "latency",
)
"""Packages with a page of their own, in the order of the menu."""

ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""Documents outside of docs/ that the site shows, and their pages."""


def public_names(package: str) -> list[str]:
    """Returns a package's public names: those of its stub, or its ``__all__``, or none."""
    folder = ROOT / package.replace(".", "/")
    stub = folder / "__init__.pyi"
    if stub.is_file():
        listed = ast.parse(stub.read_text(encoding="utf-8")).body
        return sorted(a.name for node in listed if isinstance(node, ast.ImportFrom) for a in node.names)
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def summary(package: str) -> str:
    """Returns the first line of a package's docstring."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0]


def api_page(package: str) -> str:
    """Returns the page of a package: its question, then every public name with its docstring."""
    own = [name for name in public_names(package) if f"{package}.{name}" not in PACKAGES]
    lines = [f"# {package}", "", summary(package), ""]
    for name in own:
        lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines)


def recipes_page() -> str:
    """Returns the table of the papers' recipes, and what each leaves open."""
    lines = [
        "# Recipes of the papers",
        "",
        "`halpiee train MODEL --recipe NAME` takes one; options that are typed beside it replace its own.",
    ]
    for path in sorted((ROOT / "halpiee" / "recipes").glob("*.yaml")):
        recipe: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = {k: v for k, v in recipe.items() if k not in ("about", "source", "open")}
        lines += ["", f"## {path.stem}", "", f"{recipe['about']}. Source: {recipe['source']}.", "", "```yaml"]
        lines += [yaml.safe_dump(settings, sort_keys=False, default_flow_style=None).rstrip(), "```", ""]
        if recipe.get("open"):
            lines += ["What the source leaves open, and what is done here:", ""]
            lines += [f"- {point}" for point in recipe["open"]]
    return "\n".join(lines) + "\n"


def decisions() -> str:
    """Returns a list of all decisions with links."""
    lines = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def relocated(text: str, folder: str) -> str:
    """Returns a document as a page of the site: links into docs/ lose that folder, others become code."""

    def link(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        path = f"{folder}{target}" if "://" not in target else target
        if "://" in path or path.startswith("#"):
            return match[0]
        if path in ELSEWHERE:
            return f"[{label}]({ELSEWHERE[path]})"
        if path.startswith("docs/"):
            return f"[{label}]({path.removeprefix('docs/')})"
        return f"`{path}`" if label in (target, path) else f"{label} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, text)


def on_config(config: Any) -> Any:
    """Puts the pages of the API and the decisions into the menu."""
    pages = [f"api/{package}.md" for package in PACKAGES if public_names(package)]
    chosen = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    for entry in config["nav"]:
        if "API" in entry:
            entry["API"] = [{"Overview": "api/index.md"}, *({Path(page).stem: page} for page in pages)]
        if "Decisions" in entry:
            entry["Decisions"] = [
                {"All decisions": "decisions/index.md"},
                *(
                    {path.stem[5:].replace("-", " ").capitalize(): f"decisions/{path.name}"}
                    for path in chosen
                ),
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made here."""
    from mkdocs.structure.files import File

    def add(path: str, text: str) -> None:
        files.append(File.generated(config, path, content=text))

    index = [
        "# API",
        "",
        "What `import halpiee` and `import latency` offer; each page is made from the docstrings.",
        "",
    ]
    for package in PACKAGES:
        if public_names(package):
            add(f"api/{package}.md", api_page(package))
            index.append(f"- [`{package}`]({package}.md): {summary(package)}")
    add("api/index.md", "\n".join(index) + "\n")
    add("recipes.md", recipes_page())
    for source, page in ELSEWHERE.items():
        folder = source.rpartition("/")[0]
        text = (ROOT / source).read_text(encoding="utf-8")
        add(page, relocated(text, f"{folder}/" if folder else ""))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Appends the list of decisions to their first page."""
    return f"{markdown}\n{decisions()}\n" if page.file.src_uri == "decisions/index.md" else markdown


HEAD = """# Options of every verb

Made by `make options` from the fields that the program reads: do not edit. `halpiee VERB --help` says the same with
examples. An option of `train` is written in a recipe without its dashes: `batch-size: 128`.
"""


def options_page() -> str:
    """Returns docs/options.md, made from the fields that the program reads its options of."""
    from halpiee.cli.app import program
    from halpiee.cli.options import Typed
    from halpiee.training.config import OPTIONS

    lines = [HEAD]
    for verb, command in sorted(program.commands.items()):
        about = (command.help or "").strip().splitlines()[0]
        lines += [
            f"## {verb}",
            "",
            about,
            "",
            "| option | takes | default | what it is |",
            "|---|---|---|---|",
        ]
        options = [parameter.option for parameter in command.params if isinstance(parameter, Typed)]
        for heading in dict.fromkeys(sorted((o.help.heading for o in options), key=lambda h: h == "Options")):
            lines += [_option_row(option) for option in options if option.help.heading == heading]
        lines.append("")
    hidden = [option for option in OPTIONS.values() if option.help.text and not option.help.on_command_line]
    lines += [
        "## Recipes and Python only",
        "",
        "| option | takes | default | what it is |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_option_row(option) for option in hidden)]) + "\n"


def _option_row(option: Any) -> str:
    """Returns the line of an option."""
    default = "needed" if option.required else option.shown_default
    both = bool in option.kinds and option.default is not False
    typed = f"`{option.typed}`" + f", `--no-{option.typed.removeprefix('--')}`" * both
    cells = (typed, option.takes, default, option.help.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    (ROOT / "docs" / "options.md").write_text(options_page(), encoding="utf-8")
