"""The report: one page that needs nothing else, in which every run is found."""

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_analysis.report import render_report, write_report
from steer_analysis.runs import Series
from steer_analysis.statistics import Estimate
from steer_analysis.svg import HEIGHT, WIDTH, Line, interval_bar, line_chart, nice_ticks, spread, thin
from steer_openrlhf.errors import ConfigError

VOID = {"meta", "input", "br"}
finite = st.floats(-1e6, 1e6)


class Page(HTMLParser):
    """Collects elements and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_page_is_whole_and_needs_no_network(study: Path) -> None:
    html = render_report(study)
    page = parsed(html)
    assert len(html.encode()) < 2_000_000
    assert not re.search(r"(?i)https?:|@import|url\(|<script|<link", html)
    assert not [tag for tag, attributes in page.elements if "src" in attributes or "href" in attributes]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_run_is_shown_with_its_state_and_reason(study: Path) -> None:
    page = parsed(render_report(study))
    for label in ("ppo", "uniform", *(f"trial {number}" for number in range(8))):
        assert label in page.text
    assert "RuntimeError: <engine> died & left" in page.text  # escaped in the source, read as it was written
    assert "still at work" in page.text
    assert "40 items × 4 samples" in page.text
    assert "commit c0ffee" in page.text


def test_tables_and_pictures_can_be_read_aloud(study: Path) -> None:
    page = parsed(render_report(study))
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 8 + 6
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in pictures)
    named = {attributes.get("id") for _, attributes in page.elements}
    assert {name for one in pictures for name in str(one["aria-labelledby"]).split()} <= named
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 0
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")


def test_every_metric_of_every_run_is_drawn(study: Path) -> None:
    html = render_report(study)
    found = dict(re.findall(r"<figcaption>(.*?)</figcaption>\s*(<svg.*?</svg>)", html, re.DOTALL))
    lines = {title: len(re.findall(r'<g class="line', svg)) for title, svg in found.items()}
    assert lines == {
        "Training reward": 10,
        "Validation accuracy": 9,  # trial 7 has not been validated yet
        "Policy entropy": 10,
        "Entropy change per step": 10,
        "STEER weight": 9,  # not ppo
        "Estimated entropy change of a token": 9,
    }
    assert "trial 0 (steer, lambda_min 0.62), step 24" in found["Policy entropy"]


def test_what_was_not_finite_is_said(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/steer/entropy": null, "train/grade_failed": 0.5}\n')
    text = parsed(render_report(run)).text
    assert "a: not a finite number at step 4" in text
    assert "the grader failed during training at step 4" in text


def test_report_before_anything_is_evaluated(tmp_path: Path, run_maker: Any) -> None:
    run_maker(tmp_path / "trials" / "0", state="preparing", evaluated=False, steps=0)
    text = parsed(render_report(tmp_path)).text
    assert "No run has been evaluated yet" in text


def test_writes_where_it_is_told(study: Path) -> None:
    output = write_report(study, study / "out" / "report.html")
    assert output.read_text().startswith("<!doctype html>")
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_no_study_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has neither"):
        render_report(tmp_path)


def chart(*series: Series, percent: bool = False) -> ElementTree.Element:
    lines = [Line(f"run {n} <&>", str(n), f"run-{n}", data) for n, data in enumerate(series)]
    return ElementTree.fromstring(line_chart("c", lines, "A <title>", "nats & more", percent))


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    path = chart(Series((1, 2, 4, 5), (0.1, 0.2, 0.4, 0.5), missing=(3,))).find(".//path")
    assert path is not None
    assert re.findall("[ML]", path.attrib["d"]) == ["M", "L", "M", "L"]


def test_points_say_their_value() -> None:
    titles = [element.text for element in chart(Series((7,), (0.4321,)), percent=True).iter("title")]
    assert titles == ["A <title>", "run 0 <&>, step 7: 43.21"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("c", [Line("a", "a", "", Series((), (), (1, 2)))], "t", "y") == ""


@given(st.lists(finite, min_size=1, max_size=30))
def test_every_point_is_inside_the_picture(values: list[float]) -> None:
    drawn = chart(Series(tuple(range(1, len(values) + 1)), tuple(values)))
    for circle in drawn.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= HEIGHT


@given(finite, finite, st.integers(2, 9))
def test_ticks_enclose_the_data_and_are_few(one: float, other: float, wanted: int) -> None:
    low, high = sorted((one, other))
    ticks = nice_ticks(low, high, wanted)
    slack = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] - slack <= low <= high <= ticks[-1] + slack
    assert 2 <= len(ticks) <= wanted + 3
    assert all(math.isclose(b - a, ticks[1] - ticks[0], rel_tol=1e-3) for a, b in pairwise(ticks))


def test_ticks_by_hand() -> None:
    assert nice_ticks(0.23, 0.91, 5) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(0, 24, 7, whole=True) == [0, 5, 10, 15, 20, 25]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_tags_keep_their_distance_and_order(places: list[float]) -> None:
    moved = spread(sorted(places), 12, 0, 100)
    gap = min(12, 100 / max(1, len(places) - 1))
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(moved))
    assert moved[0] >= -1e-9
    assert moved[-1] <= 100 + 1e-9


def test_thinning_keeps_the_spike_and_the_ends() -> None:
    points = [(step, 9.0 if step == 501 else 0.5) for step in range(1, 5001)]
    kept = thin(points, 120)
    assert len(kept) <= 122
    assert {(1, 0.5), (501, 9.0), (5000, 0.5)} <= set(kept)


def test_interval_bar_by_hand() -> None:
    drawn = ElementTree.fromstring(interval_bar("b", Estimate(0.5, 0.25, 0.75, 4), 0.0, 1.0, 0.5, "run-0"))
    interval = next(element for element in drawn.iter("line") if element.attrib["class"] == "interval")
    assert (float(interval.attrib["x1"]), float(interval.attrib["x2"])) == (58.0, 162.0)  # 6 + 208 * .25, 6 + 208 * .75
    assert drawn.findtext("title") == "50.0 %, 95 % interval 25.0 to 75.0 %"
