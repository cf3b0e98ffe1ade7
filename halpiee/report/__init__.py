"""What a run leaves for people: a table on screen, a page, a site of several runs, and Markdown."""

from halpiee.report.page import render_card, render_html, render_markdown, render_site, runs_table, table
from halpiee.report.values import read_report

__all__ = [
    "read_report",
    "render_card",
    "render_html",
    "render_markdown",
    "render_site",
    "runs_table",
    "table",
]
