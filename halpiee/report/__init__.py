"""What a run leaves for people: a table on screen, a page, a site of several runs, and Markdown."""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
