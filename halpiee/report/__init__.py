"""What a run leaves for people: tables, plots and a page."""

from halpiee.report.markdown import render_markdown
from halpiee.report.page import render_html
from halpiee.report.terminal import table

__all__ = ["render_html", "render_markdown", "table"]
