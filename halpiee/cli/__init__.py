"""The command line: one file per verb."""

from halpiee.cli.app import main

__all__ = ["main"]
