"""The report: one page that needs nothing else, in which every run is found."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.importance import PedAnovaImportanceEvaluator as PedAnova
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from steer_analysis.curves import _catalogue, over_seeds
from steer_analysis.drilldown import drilldown
from steer_analysis.importance import parameter_importance
from steer_analysis.leaderboard import build_leaderboard
from steer_analysis.probe_view import token_weights
from steer_analysis.report import GRADE_FAILED, render_report, write_report
from steer_analysis.runs import METRICS, Series, read_runs
from steer_analysis.statistics import Estimate
from steer_analysis.svg import HEIGHT, WIDTH, Line, interval_bar, line_chart, nice_ticks, spread, thin
from steer_experiments.run_dir import write_yaml
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
    assert not re.search(r"(?i)https?:|@import|url\(|<link", html)
    links = [str(attributes.get("href", attributes.get("src", "#"))) for _, attributes in page.elements]
    assert all(link.startswith("#") for link in links)
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
    assert len(pictures) == 8 + 6 + 3  # bars, curves, pass@k and maj@k and accuracy over entropy
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
    evaluated = {"pass@k on tiny_test", "maj@k on tiny_test", "Accuracy on tiny_test over final entropy"}
    assert {title: lines.pop(title) for title in evaluated} == dict.fromkeys(evaluated, 8)
    assert lines == {
        "Training reward": 10,
        "Validation accuracy": 9,  # trial 7 has not been validated yet
        "Policy entropy": 10,
        "Entropy change per step": 10,
        "STEER weight": 9,  # not ppo
        "Estimated entropy change of a token": 9,
    }
    assert "trial 0 (steer, lambda_min=0.62), step 24" in found["Policy entropy"]


def test_what_was_not_finite_is_said(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/steer/entropy": null, "train/grade_failed": 0.5}\n')
    text = parsed(render_report(run)).text
    assert "a: not a finite number at step 4" in text
    assert "the grader failed during training at step 4" in text


def test_seeds_of_an_arm_are_one_line_with_a_band(tmp_path: Path, run_maker: Any) -> None:
    for seed in range(3):
        run_maker(tmp_path / f"grpo-{seed}", "ppo", 0.5, seed=seed)
    run_maker(tmp_path / "grpo-3", "ppo", 0.5, seed=3, state="failed", reason="lost", evaluated=False, steps=5)
    html = render_report(tmp_path)
    entropy = re.search(r"<figcaption>Policy entropy</figcaption>\s*(<svg.*?</svg>)", html, re.DOTALL)
    assert entropy
    assert entropy[1].count('class="band"') == 1
    assert len(re.findall(r'<g class="line', entropy[1])) == 2  # the mean of three, and the failed one by itself
    assert "grpo-3 (failed), step 5" in entropy[1]
    assert "grpo (ppo), mean of 3 seeds ends at" in entropy[1]


def test_every_charted_metric_is_kept_when_runs_are_read(study: Path) -> None:
    """Charts draw from what :mod:`.runs` keeps of the metrics; a name that only one of them knows would be an empty
    chart."""
    charted = {name for chart in _catalogue([]) for name in chart.names} | {GRADE_FAILED}
    assert charted == set(METRICS)
    kept = read_runs([study / "trials" / "0"])[0].metrics
    assert "train/policy_loss" not in set().union(*kept)


def test_mean_over_seeds_by_hand() -> None:
    mean, band = over_seeds([Series((1, 2, 3), (0.0, 0.2, 0.4)), Series((1, 3), (1.0, 0.8), missing=(2,))])
    assert (mean.steps, mean.missing) == ((1, 3), (2,))
    assert mean.values == pytest.approx((0.5, 0.6))
    assert band == ((1, 0.0, 1.0), (3, 0.4, 0.8))


def test_hostile_text_is_text(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a<b>", reason="<img src=x onerror=alert(1)>")
    records = run / "eval" / "tiny_test.jsonl"
    hostile = "</script><img src=x onerror=alert(1)> & \u2028 <!--"
    records.write_text(records.read_text().replace('"output": "4"', f'"output": {json.dumps(hostile)}'))
    html = render_report(run)
    page = parsed(html)
    assert "<img" not in html
    assert "a&lt;b&gt;" in html
    data = re.search(r'<script type="application/json" id="items-data">(.*?)</script>', html, re.DOTALL)
    assert data
    assert not set("<>&\u2028") & set(data[1])
    outputs = json.loads(data[1])["suites"][0]["outputs"]
    assert len(outputs) == 160
    assert {one[6] for one in outputs} == {hostile}
    assert [tag for tag, _ in page.elements].count("script") == 2


def test_the_policy_names_exactly_this_page(study: Path) -> None:
    html = render_report(study)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy[1]
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"\son[a-z]+=|\sstyle=", html)  # the policy would refuse them


def test_long_outputs_are_shortened_and_it_is_said(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a")
    records = run / "eval" / "tiny_test.jsonl"
    records.write_text(records.read_text().replace('"output": "4"', f'"output": "start {"x" * 50_000} end"'))
    board = build_leaderboard(read_runs([run]))
    suite = json.loads(drilldown(board, budget=100_000))["suites"][0]
    assert len(str(suite)) < 130_000
    assert 30 < len(suite["outputs"]) < 160
    assert f"{len(suite['outputs'])} of 160 outputs are on this page" in suite["note"]
    assert "shortened in the middle" in suite["note"]
    text = suite["outputs"][0][6]
    assert text.startswith("start xx")
    assert text.endswith("xx end")
    assert "48210 characters left out" in text
    assert len({one[0] for one in suite["outputs"][:40]}) == 40  # every item once before any twice


def test_thousands_of_arms_are_drawn_behind(tmp_path: Path, run_maker: Any) -> None:
    run_maker(tmp_path / "trials" / "ppo", "ppo", steps=3, evaluated=False)
    for number in range(20):
        steer = {"lambda_min": 0.5 + number / 100}
        run_maker(tmp_path / "trials" / str(number), steer=steer, steps=3, evaluated=False)
    html = render_report(tmp_path)
    assert "Thin grey: 7 of the other 7 arms" in html
    entropy = re.search(r"<figcaption>Policy entropy</figcaption>\s*(<svg.*?</svg>)", html, re.DOTALL)
    assert entropy
    assert len(re.findall(r'<g class="line', entropy[1])) == 14
    behind = re.search(r'class="behind" d="([^"]*)"', entropy[1])
    assert behind
    assert behind[1].count("M") == 7


def test_importance_is_optunas(tmp_path: Path, run_maker: Any) -> None:
    """One parameter decides the value, the other nothing."""
    run_maker(tmp_path / "trials" / "0")
    write_yaml(tmp_path / "study.yaml", {"name": "demo", "n_trials": 40})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(study_name="demo", storage=storage, direction="maximize")
    assert (found := parameter_importance(tmp_path))
    assert found.reason.startswith("0 complete trials; at least 10")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(lambda trial: trial.suggest_float("matters", 0, 1) ** 2 + 0 * trial.suggest_float("not", 0, 1), 40)
    found = parameter_importance(tmp_path)
    assert found
    assert found.trials == 40
    assert found.shares == pytest.approx(optuna.importance.get_param_importances(study, evaluator=PedAnova()))
    assert found.shares["matters"] > 0.8
    assert "40 complete trials" in render_report(tmp_path)


def test_probed_runs_show_estimators_quadrants_and_weights(probed: Path) -> None:
    html = render_report(probed)
    assert '<h2 id="probe-title">Entropy-change estimators</h2>' in html
    text = parsed(html).text
    for word in ("exact", "paper", "reference", "suppression", "error correction"):
        assert word in text
    assert "weights of" in html


def test_weights_of_tokens_are_those_of_the_intervention(probed: Path) -> None:
    weights = token_weights(probed)
    assert weights.size > 100
    assert weights.min() >= 0.8 - 1e-6  # lambda_min
    assert weights.max() <= 1 + 1e-6


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
