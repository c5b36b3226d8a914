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


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give run directories, or --model"]),
        (["--model", "m"], ["--model and --output belong together"]),
        (["r", "--greedy", "--temperature", "0.5", "--gpus", "0"], ["--greedy is temperature 0", "--gpus 0"]),
        (["r", "--n", "x", "--n", "aime24=0"], ["--n x: must be N or SUITE=N", "--n aime24=0"]),
    ],
)
def test_eval_says_every_mistake_before_anything_starts(words: list[str], parts: list[str]) -> None:
    done = steer("eval", *words)
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts), done.stderr
    assert "Traceback" not in done.stderr


def test_regrade_as_a_person_types_it(study: Path) -> None:
    done = steer("regrade", study / "trials" / "ppo", study / "trials" / "7", "--grader", "math")
    assert done.returncode == 1
    assert "160 answers regraded" in done.stdout
    assert "(integer@1 -> math@" in done.stdout
    assert "nothing is evaluated: run steer eval" in done.stdout


def test_wrong_folder_is_a_mistake_and_no_traceback(tmp_path: Path) -> None:
    done = steer("report", tmp_path)
    assert done.returncode == 2
    assert "has neither config.yaml nor trials/" in done.stderr
    assert "Traceback" not in done.stderr
