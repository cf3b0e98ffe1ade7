from halpiee.report.page import render_card as render_card
from halpiee.report.page import render_html as render_html
from halpiee.report.page import render_markdown as render_markdown
from halpiee.report.page import render_site as render_site
from halpiee.report.page import runs_table as runs_table
from halpiee.report.page import table as table
from halpiee.report.values import read_report as read_report
