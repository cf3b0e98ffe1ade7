"""The page stands alone, says everything once, and shows what it is given as text."""

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halpiee.report import render_card, render_html, render_markdown, render_site, runs_table, table

pytestmark = pytest.mark.usefixtures("charts_drawn_once")

VOID = {"meta", "br"}
HOSTILE = "<script>alert(1)</script>\"'&|`"


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes, text and table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def links(self) -> list[str]:
        """Where the page leads; a mark of a chart refers to its shape within the page, which is no link."""
        return [value for name, value in self.attributes if name == "href" and not value.startswith("#")]

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def hostile(value: Any) -> Any:
    """Puts markup into every text and every name below the top level."""
    if isinstance(value, dict):
        return {
            HOSTILE + key if key in ("conv1", "device", "profile") else key: hostile(v)
            for key, v in value.items()
        }
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_the_page_loads_nothing_from_anywhere(report: dict[str, Any]) -> None:
    html = render_html(report)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "xlink:href", "srcset", "action")]
    assert page.links == ["pruned.onnx"]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import", html)


def test_every_number_of_the_comparison_stands_on_the_page(report: dict[str, Any]) -> None:
    text = Page(render_html(report)).text
    for expected in (
        "260 µs",
        "262.9 µs (IQR 4.4)",
        "1.98× (95%: 1.95 to 2.01)",
        "40.8 M",
        "−0.50 points",
        "0.613",
    ):
        assert expected in text


def test_all_plots_are_there(report: dict[str, Any]) -> None:
    page = Page(render_html(report))
    charts = [value for name, value in page.attributes if name == "aria-label"]
    assert charts == [
        "Top-1 accuracy over measured latency",
        "Share of the scores kept over share of the dense latency",
        "Top-1 accuracy over training step",
        "Training loss over training step",
        "Predicted latency over training step",
        "Latency of the candidate over round",
    ]
    for section in (
        "Latency",
        "Accuracy and latency",
        "The network, layer by layer",
        "Other budgets",
        "Pruning and growing",
        "Closed loop",
        "Time spent",
        "Environment",
    ):
        assert section in page.words


def test_a_layer_bar_is_as_long_as_its_share(report: dict[str, Any]) -> None:
    html = render_html(report)
    # conv2 has 32 channels, the most, and keeps 8; conv1 keeps all of its 16.
    bar = '<span class="whole" style="width:{}%"><span class="part" style="width:{}%"></span></span></span>{}'
    assert bar.format("100.00", "25.00", '<span class="value">8 / 32</span>') in html
    assert bar.format("50.00", "100.00", '<span class="value">16 / 16</span>') in html


def test_a_layers_times_are_bars_of_one_scale(report: dict[str, Any]) -> None:
    html = render_html(report)
    # conv2 takes 80 µs, the most, and 20 µs when pruned; a change of layout belongs to no layer.
    bar = '<span class="over" style="width:{}%"></span><span class="over part" style="width:{}%"></span></span>{}'
    assert bar.format("100.00", "25.00", '<span class="value">20 / 80</span>') in html
    assert bar.format("50.00", "50.00", '<span class="value">40 / 40</span>') in html
    assert '<span class="value">4.5 / 5.5</span>' in html


def test_the_run_stands_beside_the_curve_of_other_budgets(report: dict[str, Any]) -> None:
    text = Page(render_html(report)).text
    assert "Best selection: 90% at 50%" in text
    assert "This run: 85% at 49.6%" in text


def test_a_curve_that_could_not_be_drawn_says_why(report: dict[str, Any]) -> None:
    report["pareto"] = {"skipped": "the run has no trained dense <network>"}
    page = Page(render_html(report))
    assert "not drawn: the run has no trained dense <network>" in page.words
    del report["pareto"]
    assert "Other budgets" not in Page(render_html(report)).words


def test_what_is_frozen_stands_below_its_layer_with_the_reason(report: dict[str, Any]) -> None:
    report["frozen"] = {"fc": ["feeds the network's output", "a <b>"]}
    words = Page(render_html(report)).words
    assert words.index("stays whole: feeds the network's output; a <b>") > words.index("fc")
    assert "| fc | feeds the network's output; a &lt;b&gt; |" in render_markdown(report)


def test_dense_and_pruned_stand_at_their_latency_and_accuracy(report: dict[str, Any]) -> None:
    text = Page(render_html(report)).text
    assert "Dense: 99% at 520 µs" in text
    assert "This run: 98.5% at 263 µs" in text


def test_other_runs_stand_beside_this_one_and_uniform_widths_are_told_apart(report: dict[str, Any]) -> None:
    uniform = report | {"method": "small-dense", "measured_us": 259.0, "accuracy_pruned": 0.97}
    halp = report | {"method": "halp", "measured_us": 255.0, "accuracy_pruned": 0.98}
    text = Page(render_html(report, others={"a": uniform, "b": halp})).text
    for one in (
        "Uniform widths, a: 97% at 259 µs",
        "Other runs, b: 98% at 255 µs",
        "This run: 98.5% at 263 µs",
    ):
        assert one in text
    assert text.count("Dense: 99% at 520 µs") == 1  # the same measurement of all three


def test_a_site_lists_every_run_with_one_unit_a_column(report: dict[str, Any]) -> None:
    other = report | {"data": "cifar10", "promise": {"met": False, "text": "missed"}}
    pages = render_site({"one": report, "two": report | {"method": "halp"}, "three": other})
    assert sorted(pages) == ["index.html", "one.html", "three.html", "two.html"]
    index = Page(pages["index.html"])
    assert index.links == ["one.html", "two.html", "three.html"]
    assert [word for word in index.words if word in ("resnet20 on digits", "resnet20 on cifar10")] == [
        "resnet20 on digits",
        "resnet20 on cifar10",
    ]
    first = index.words.index("one")
    cells = [word for word in index.words[first:] if word.strip()][:12]
    assert cells == [
        *["one", "iee", "0.5", "0.258", "–", "0.520", "0.263", "1.98", "99.00", "98.50", "10.2", "kept"]
    ]
    assert "index.html" in Page(pages["one.html"]).links
    assert "Other runs, two: 98.5% at 263 µs" in Page(pages["one.html"]).text  # two, on the same data
    assert "Other runs" not in Page(pages["three.html"]).text


def test_a_sparse_run_shows_what_share_of_each_layer_is_on_and_how_its_masks_overlap(
    report: dict[str, Any],
) -> None:
    report["densities"] = {"conv2.weight": 0.125}
    report["events"] = [
        {"step": 10, "event": "drop", "used": 500, "budget": 512, "omega": 64, "iou": 0.75},
        {"step": 20, "event": "grow", "used": 512, "budget": 512, "omega": 64, "iou": 0.875},
    ]
    html = render_html(report)
    assert 'style="width:12.50%"' in html
    page = Page(html)
    assert "12.5% on" in page.words
    assert "Consecutive masks: 0.875 at 20" in page.text
    assert "Grow: 512 at 20" in page.text
    assert "Units kept over training step" in [
        value for name, value in page.attributes if name == "aria-label"
    ]


def test_a_sparse_run_shows_what_survives_and_what_its_training_costs(report: dict[str, Any]) -> None:
    report["events"] = [
        {"step": 10, "event": "grow", "used": 512, "budget": 512, "iou": None, "survival": None},
        {"step": 20, "event": "prune", "used": 500, "budget": 512, "iou": 0.9, "survival": 0.625},
    ]
    epoch = {"step": 30, "accuracy": 0.5, "loss": 1.0, "density": 0.25}
    report["history"] = {"pruned": [{**epoch, "train_flops": {"paper": 0.4375, "strict": 0.5}}]}
    page = Page(render_html(report))
    assert "Survival of what was grown: 0.625 at 20" in page.text
    assert "Active units: 25% at 30" in page.text
    assert "Training FLOPs so far, of dense: 43.8% at 30" in page.text


def test_runs_stand_in_one_table_with_one_unit_a_column(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    ends = {"predicted_low_us": 250.2, "predicted_high_us": 266.4}
    console.print(runs_table({"one": report | ends, "two[x]": report | {"measured_us": None}}))
    head, first, second = console.export_text().splitlines()
    assert head.split()[0] == "Run"
    rest = ["1.98", "99.00", "98.50", "10.2", "kept"]
    assert first.split() == [*["one", "iee", "0.5", "0.258", "0.250", "to", "0.266", "0.520", "0.263"], *rest]
    assert second.split() == [*["two[x]", "iee", "0.5", "0.258", "–", "0.520", "–"], *rest]


def test_no_name_is_cut(report: dict[str, Any]) -> None:
    long = "backbone.features.denseblock4.denselayer24.conv2.parametrizations"
    report["widths"] = report["widths_dense"] = {long: 8}
    html = render_html(report)
    assert long in Page(html).words
    assert "direction:rtl" not in html
    assert ".net .name{white-space:normal;overflow-wrap:anywhere" in html


@pytest.mark.parametrize(
    "name",
    [
        "javascript:alert(1)",
        "https://example.com/x",
        "../up.onnx",
        "/etc/passwd",
        "a b.onnx",
        "-x",
        '"onclick=',
    ],
)
def test_only_a_plain_file_name_becomes_a_link(report: dict[str, Any], name: str) -> None:
    report["files"] = {"onnx": name, "plan": "plan.json"}
    page = Page(render_html(report))
    assert page.links == ["plan.json"]
    assert name in page.words


def test_the_range_of_a_prediction_is_drawn_on_its_bar_and_told_in_every_table(
    report: dict[str, Any],
) -> None:
    assert 'class="range" style=' not in render_html(report)
    report |= {"predicted_low_us": 247.0, "predicted_high_us": 273.0}
    html = render_html(report)
    # the longest bar is the dense network's 520 µs: 247 of it is 47.5 %, and 273 − 247 is 5 %
    assert html.count('class="range" style="left:47.50%;width:5.00%"') == 1
    for text in (Page(html).text, render_markdown(report), render_card(report, load="runs/x")):
        assert "258 µs (90%: 247 to 273)" in text


def test_a_range_beyond_the_dense_latency_stays_on_the_page(report: dict[str, Any]) -> None:
    report |= {"predicted_low_us": 0.0, "predicted_high_us": 1040.0}
    html = render_html(report)
    assert 'class="range" style="left:0.00%;width:100.00%"' in html
    assert 'class="fill dense" style="width:50.00%"' in html


def test_the_budget_line_stands_at_its_share_of_the_dense_latency(report: dict[str, Any]) -> None:
    assert 'class="budget" style="left:50.00%"' in render_html(report)


def test_a_prune_is_marked_at_what_it_left_and_its_target(report: dict[str, Any]) -> None:
    text = Page(render_html(report)).text
    assert "Prune: 180 µs at 10" in text
    assert "Grow: 258 µs at 20" in text
    assert "Prune target Ψ − Ω: 182 µs at 10" in text


@pytest.mark.parametrize(("met", "words"), [(True, "Promise kept"), (False, "Promise missed")])
def test_the_promise_is_said_first(report: dict[str, Any], met: bool, words: str) -> None:
    report["promise"] = {"met": met, "text": "measured so and so"}
    page = Page(render_html(report))
    assert page.words.index(words) < page.words.index("Latency")
    assert "measured so and so" in page.words


def test_markup_in_any_text_or_name_is_shown_not_run(report: dict[str, Any]) -> None:
    html = render_html(hostile(report))
    page = Page(html)
    assert "script" not in page.tags
    assert HOSTILE + "resnet20" in page.text
    assert HOSTILE + "conv1" in page.words
    assert page.links == []
    assert "<script>" not in html


def test_markup_in_markdown_is_text(report: dict[str, Any]) -> None:
    text = render_markdown(hostile(report))
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "conv1" in line]
    assert len(rows) == 2  # its channels and its time
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4, 4]


def test_a_bare_report_has_no_plots_and_only_dashes() -> None:
    page = Page(render_html({}))
    assert "figure" not in page.tags
    assert "Promise kept" not in page.words
    assert sum(word.strip() == "–" for word in page.words) > 30


NUMBERS = [
    "budget_us",
    "dense_us",
    "measured_us",
    "dense_iqr_us",
    "speedup",
    "gap",
    "accuracy_dense",
    "macs_dense",
]
OTHERS = ["model", "budget", "speedup_ci", "history", "train_flops_ratio", "widths", "widths_dense", "events"]
OTHERS += ["closed_loop", "calibration", "promise", "environment", "seconds_by_stage", "files", "schema"]
OTHERS += ["layers", "pareto", "zeros"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.sampled_from(NUMBERS + OTHERS)),
    st.sets(st.sampled_from(NUMBERS)),
    st.sets(st.sampled_from(OTHERS)),
)
def test_any_missing_value_still_gives_a_whole_page(
    report: dict[str, Any], null: set[str], nan: set[str], absent: set[str]
) -> None:
    changed = report | dict.fromkeys(null) | dict.fromkeys(nan, float("nan"))
    changed = {key: value for key, value in changed.items() if key not in absent}
    page = Page(render_html(changed))
    for text in (page.text, render_markdown(changed)):
        assert not re.search(r"\b(nan|None|inf)\b", text)


def test_markdown_is_exactly_this() -> None:
    report = {
        "model": "net_a",
        "data": "digits",
        "budget": "260us",
        "dense_us": 520.0,
        "budget_us": 260.0,
        "measured_us": 255.0,
        "widths": {"conv1": 8},
        "widths_dense": {"conv1": 16},
        "events": [{"step": 3, "event": "grow", "used_us": 255.0, "budget_us": 260.0, "slack_us": 5.0}],
        "promise": {"met": False, "text": "missed"},
    }
    head, rest = render_markdown(report).split("## Circumstances")
    assert head == (
        "# net\\_a on digits, budget 260us\n\n"
        "**Promise missed**: missed\n\n"
        "|  | Dense | Pruned | Ratio |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| Latency, budget | – | 260 µs | 0.50× |\n"
        "| Latency, predicted | – | – | – |\n"
        "| Latency, measured | 520 µs | 255 µs | 0.49× |\n"
        "| Speed-up, side by side | – | – | – |\n"
        "| Images per second | – | – | – |\n"
        "| MACs per image | – | – | – |\n"
        "| Parameters | – | – | – |\n"
        "| Top-1 accuracy | – | – | – |\n"
        "| Training FLOPs, paper | – | – | – |\n"
        "| Training FLOPs, strict | – | – | – |\n"
        "| Training time | – | – | – |\n\n"
        "## Channels per layer\n\n"
        "| Layer | Dense | Pruned |\n"
        "| --- | ---: | ---: |\n"
        "| conv1 | 16 | 8 |\n\n"
        "## Pruning and growing\n\n"
        "| Step | Event | Used | Budget | Slack |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| 3 | grow | 255 µs | 260 µs | 5.00 µs |\n\n"
    )
    assert "| Method | – |" in rest


def test_markdown_has_the_layers_and_the_curve(report: dict[str, Any]) -> None:
    text = render_markdown(report)
    assert (
        "## Time per layer\n\n| Layer | Dense | Pruned |\n| --- | ---: | ---: |\n| conv1 | 40.0 µs | 40.0 µs |"
        in text
    )
    assert "| 50.0% | 90.0% |\n| 100.0% | 100.0% |\n| 49.6% (this run) | 85.0% |" in text


def test_the_table_prints_names_with_brackets_as_they_are(report: dict[str, Any]) -> None:
    from rich.console import Console

    report["model"] = "net[bold]"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(report))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "net[bold] on digits, budget 50% of the dense latency"
    measured = next(line for line in lines if "Latency, measured" in line)
    assert [cell.strip() for cell in measured.split("│")[1:-1]] == [
        "Latency, measured",
        "520 µs (IQR 12)",
        "262.9 µs (IQR 4.4)",
        "0.51×",
    ]
