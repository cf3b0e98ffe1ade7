"""Writes docs/options.md: the options of every verb, made from the fields that the program reads them of.

python -m tools.options_page --out docs/options.md        (make options)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from halpiee.cli.app import program
from halpiee.cli.options import Typed
from halpiee.options import Option
from halpiee.training.config import OPTIONS
from latency._files import write

__all__ = ["main", "page"]

HEAD = """# Options of every verb

Made by `make options` from the fields that the program reads: do not edit. `halpiee VERB --help` says the same with
examples. An option of `train` is written in a recipe without its dashes: `batch-size: 128`.
"""


def page() -> str:
    """Returns the page."""
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
            lines += [row(option) for option in options if option.help.heading == heading]
        lines.append("")
    hidden = [option for option in OPTIONS.values() if option.help.text and not option.help.on_command_line]
    lines += [
        "## Recipes and Python only",
        "",
        "| option | takes | default | what it is |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(option) for option in hidden)]) + "\n"


def row(option: Option) -> str:
    """Returns the line of an option."""
    default = "needed" if option.required else option.shown_default
    both = bool in option.kinds and option.default is not False
    typed = f"`{option.typed}`" + f", `--no-{option.typed.removeprefix('--')}`" * both
    cells = (typed, option.takes, default, option.help.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/options.md"), help="the page, which is replaced"
    )
    write(parser.parse_args(arguments).out, page(), overwrite=True)


if __name__ == "__main__":
    main()
