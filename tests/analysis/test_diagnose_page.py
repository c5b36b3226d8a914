"""What ``steer diagnose`` writes: tables, numbers, and a page that needs nothing else."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from steer_analysis.diagnose import diagnose
from steer_analysis.diagnose_page import render_page

Maker = Callable[..., Path]
VOID = {"meta", "input"}


def steer(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steer_sweeps", *words], capture_output=True, text=True, timeout=120)


def numbers(tree: Any) -> list[dict[str, Any]]:
    """Every ``{"value", "low", "high", "n"}`` of a JSON tree."""
    if isinstance(tree, dict):
        return [tree] if "value" in tree else [found for value in tree.values() for found in numbers(value)]
    return [found for value in tree for found in numbers(value)] if isinstance(tree, list) else []


def test_command_from_files_to_files(probe: Any, probed: Path) -> None:
    probe.damage(probed / "probe" / "step000012.rank1.npz", "truncated")
    done = steer("diagnose", probed)
    assert done.returncode == 0, done.stderr
    assert "problem: probe/step000012.rank1.npz" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 200
    whole = json.loads((probed / "diagnose.json").read_text())
    found = numbers(whole)
    assert len(found) > 300
    assert all(one.keys() == {"value", "low", "high", "n"} and isinstance(one["n"], int) for one in found)
    assert whole["settings"]["seed"] == 0
    assert whole["target"]["exact"]["pooled"]["pcc"]["value"] == pytest.approx(1, abs=1e-4)
    assert (probed / "diagnose.html").read_text().startswith("<!doctype html>")


def test_page_goes_where_it_is_told_and_only_one_can(probe: Any, probed: Path, bare: Path) -> None:
    probe.write(bare, 1)
    assert steer("diagnose", bare, "--output", bare / "out" / "a.html").returncode == 0
    assert (bare / "out" / "a.html").stat().st_size > 10_000
    done = steer("diagnose", bare, probed, "--output", bare / "b.html")
    assert done.returncode == 2
    assert "is for one run, 2 are given" in done.stderr


def test_one_run_without_probes_stops_before_anything_is_written(probed: Path, bare: Path) -> None:
    done = steer("diagnose", probed, bare)
    assert done.returncode == 2
    assert "train with --steer.probe.every N" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (probed / "diagnose.json").exists()


class Page(HTMLParser):
    """Collects elements and complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_readable_aloud_and_needs_no_network(probed: Path) -> None:
    html = render_page(diagnose(probed))
    page = Page(html)
    assert not re.search(r"(?i)https?:|@import|url\(|<script|<link", html)
    assert not [tag for tag, attributes in page.elements if "src" in attributes or "href" in attributes]
    assert len(html.encode()) < 1_000_000
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 2 + 5 + 2
    assert {name for one in pictures for name in str(one["aria-labelledby"]).split()} <= set(ids)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 0
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")


def test_page_of_one_step_without_estimators(probe: Any, bare: Path) -> None:
    """Nothing to judge is said, and the quadrants are there all the same."""
    arrays = {key: value for key, value in probe.arrays(1, 0).items() if not key.startswith("omega_")}
    probe.write(bare, 1, arrays=arrays)
    html = render_page(diagnose(bare))
    assert "No estimator has a defined correlation" in html
    assert "error correction" in html


def test_one_step_has_no_picture_that_agrees_by_its_scale_factor_alone(probe: Any, bare: Path) -> None:
    probe.write(bare, 1)
    html = render_page(diagnose(bare))
    assert html.count("<svg") == 1 + 5 + 2
    assert "chart-sums" not in html


def test_a_label_is_text_and_not_markup(probe: Any, tmp_path: Path, run_maker: Maker) -> None:
    run = run_maker(tmp_path / "a <b> & c", evaluated=False)
    probe.write(run, 1)
    assert "<b> &" not in render_page(diagnose(run))


def test_an_estimator_nobody_knows_is_shown_too(probe: Any, bare: Path) -> None:
    arrays = probe.arrays(1, 0)
    probe.write(bare, 1, arrays=arrays | {"omega_mine <1>": arrays["omega_paper"]})
    html = render_page(diagnose(bare))
    Page(html)
    assert "mine &lt;1&gt;" in html


def test_importing_it_loads_nothing_heavy() -> None:
    modules = "steer_analysis.diagnose_run, steer_analysis.diagnose_page"
    code = f"import sys, {modules}; print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
