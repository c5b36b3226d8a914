"""The commands as a person types them."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def steer(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steer_sweeps", *words], capture_output=True, text=True, timeout=120)


def test_leaderboard_into_a_folder_writes_both_and_prints_one(study: Path) -> None:
    done = steer("leaderboard", study, "--output", study)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith((study / "leaderboard.md").read_text())
    with (study / "leaderboard.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10


@pytest.mark.parametrize(("name", "words"), [("a.csv", []), ("a.txt", ["--format", "csv"])])
def test_leaderboard_as_csv(study: Path, name: str, words: list[str]) -> None:
    assert steer("leaderboard", study, "--output", study / name, *words).returncode == 0
    assert (study / name).read_text().startswith("protocol,suite,rank,")


def test_report_beside_the_study(study: Path) -> None:
    done = steer("report", study)
    assert done.returncode == 0, done.stderr
    assert (study / "report.html").stat().st_size > 10_000


def test_eval_names_every_run_it_could_not_evaluate(tmp_path: Path, run_maker: Any) -> None:
    run_maker(tmp_path / "a", evaluated=False)
    run_maker(tmp_path / "b", evaluated=False)
    done = steer("eval", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["failed", "failed"]
    assert "there is no checkpoint" in done.stdout


def test_wrong_folder_is_a_mistake_and_no_traceback(tmp_path: Path) -> None:
    done = steer("report", tmp_path)
    assert done.returncode == 2
    assert "has neither config.yaml nor trials/" in done.stderr
    assert "Traceback" not in done.stderr
