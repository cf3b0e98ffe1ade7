"""The command line: a file for the verbs of one thing, such as those of a profile."""

from halpiee.cli.app import main

__all__ = ["main"]
