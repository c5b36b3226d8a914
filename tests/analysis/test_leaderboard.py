"""Rows of one protocol only, failures as states, counts that add up, ties that are said."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from steer_analysis.leaderboard import Leaderboard, build_leaderboard
from steer_analysis.runs import differing_settings, find_runs, read_run, read_runs, series, short_names
from steer_analysis.tables import to_csv, to_markdown
from steer_openrlhf.errors import ConfigError


def board_of(*paths: Path) -> Leaderboard:
    return build_leaderboard(read_runs(paths))


def test_every_run_of_a_study_is_in_one_place(study: Path) -> None:
    board = board_of(study)
    assert [len(table.rows) for table in board.tables] == [8]
    assert {(one.run.label, one.state) for one in board.unranked} == {("trial 6", "failed"), ("trial 7", "running")}
    means = [row.accuracy.mean for row in board.tables[0].rows]
    assert means == sorted(means, reverse=True)
    for row in board.tables[0].rows:
        assert sum(row.verdicts.values()) == 160
        assert row.accuracy.mean == pytest.approx(row.verdicts["correct"] / 160)
        assert row.accuracy.low <= row.accuracy.mean <= row.accuracy.high


def test_other_protocols_are_other_tables(tmp_path: Path, run_maker: Any) -> None:
    runs = [run_maker(tmp_path / "a"), run_maker(tmp_path / "b"), run_maker(tmp_path / "c", protocol={"top_p": 0.7})]
    board = board_of(*runs)
    assert [[row.arm.label for row in table.rows] for table in board.tables if len(table.rows) == 1] == [["c"]]
    assert "must not be compared" in to_markdown(board)


def test_failed_runs_have_a_state_and_no_number(tmp_path: Path, run_maker: Any) -> None:
    run_maker(tmp_path / "a", state="failed", reason="out of memory")  # even though its checkpoint was evaluated
    run_maker(tmp_path / "b", evaluated=False)
    board = board_of(tmp_path / "a", tmp_path / "b")
    assert board.tables == []
    assert [(one.state, one.reason) for one in board.unranked] == [
        ("failed", "out of memory"),
        ("not evaluated", "run steer eval"),
    ]
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [row["accuracy"] for row in rows] == ["", ""]
    assert [row["correct"] for row in rows] == ["", ""]


def test_a_grader_that_failed_is_not_a_wrong_answer(tmp_path: Path, run_maker: Any) -> None:
    board = board_of(run_maker(tmp_path / "a", verdicts=["timeout", "error", "timeout"]))
    assert board.tables == []
    assert board.unranked[0].reason == "tiny_test: 3 of 160 samples have no score (grader: timeout 2, error 1)"


def test_overlapping_intervals_are_ties_with_the_leader(tmp_path: Path, run_maker: Any) -> None:
    names = {"leader": 0.8, "near": 0.78, "far": 0.2}
    rows = board_of(*(run_maker(tmp_path / name, skill=skill) for name, skill in names.items())).tables[0].rows
    tied = {row.arm.label: row.tied for row in rows}
    assert tied["far"] is False
    assert sum(tied.values()) == 1


def test_difference_is_paired_with_ppo(study: Path) -> None:
    rows = board_of(study).tables[0].rows
    ppo = next(row for row in rows if row.arm.method == "ppo")
    assert ppo.difference is None
    for row in rows:
        if row.arm.method != "ppo":
            assert row.difference is not None
            assert row.difference.mean == pytest.approx(row.accuracy.mean - ppo.accuracy.mean)


def test_a_run_is_compared_with_the_baseline_of_its_own_study(tmp_path: Path, run_maker: Any) -> None:
    for name, ppo in (("a", 0.3), ("b", 0.8)):
        run_maker(tmp_path / name / "trials" / "ppo", "ppo", ppo)
        run_maker(tmp_path / name / "trials" / "0", skill=0.55)
    board = board_of(tmp_path / "a", tmp_path / "b")
    rows = {row.arm.label: row for row in board.tables[0].rows}
    assert set(rows) == {"a: ppo", "a: trial 0", "b: ppo", "b: trial 0"}
    for name in ("a", "b"):
        own, ppo = rows[f"{name}: trial 0"], rows[f"{name}: ppo"]
        assert own.difference
        assert own.difference.mean == pytest.approx(own.accuracy.mean - ppo.accuracy.mean)


def test_no_baseline_no_difference(tmp_path: Path, run_maker: Any) -> None:
    assert board_of(run_maker(tmp_path / "a")).tables[0].rows[0].difference is None


def test_only_differing_parameters_are_named(study: Path) -> None:
    rows = {row.arm.label: row for row in board_of(study).tables[0].rows}
    assert rows["trial 0"].arm.parameters == "lambda_min=0.62"  # and not k, which is null
    assert rows["ppo"].arm.parameters == ""


def test_short_names_stay_unique() -> None:
    keys = ["openrlhf.actor.adam.lr", "openrlhf.critic.adam.lr", "steer.k"]
    assert list(short_names(keys).values()) == ["actor.adam.lr", "critic.adam.lr", "k"]


def test_differing_settings_know_a_missing_one(study: Path) -> None:
    runs = [read_run(study / "trials" / name) for name in ("ppo", "uniform", "0")]
    assert differing_settings(runs) == ["steer.lambda_min"]


def test_incomplete_evaluation_has_no_row(tmp_path: Path, run_maker: Any) -> None:
    records = run_maker(tmp_path / "a") / "eval" / "tiny_test.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    board = board_of(tmp_path / "a")
    assert board.tables == []
    assert "159 of 160" in board.unranked[0].reason


def test_damaged_files_are_a_reason(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a", evaluated=False)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    (run / "status.json").write_text("{torn")
    found = read_run(run)
    assert any("metrics.jsonl:2" in problem for problem in found.problems)
    assert board_of(run).unranked[0].state == "not started"


def test_null_metrics_are_missing_and_not_zero(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "train/steer/entropy": None, "nonfinite": ["train/steer/entropy"]}) + "\n")
        file.write('{"step": 5, "train/steer/entropy": 0.25}\n{"step": 6, "train/st')
    found = series(read_run(run).metrics, "train/steer/entropy")
    assert (found.steps, found.missing) == ((1, 2, 3, 5), (4,))
    assert found.values[-1] == 0.25
    row = board_of(run).tables[0].rows[0]
    assert row.entropy_final == 0.25
    assert row.entropy_min is not None
    assert row.entropy_min > 0


def test_markdown_and_csv_hold_the_same_rows(study: Path) -> None:
    board = board_of(study)
    markdown = to_markdown(board)
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert len(rows) == 10
    assert [row["run"] for row in rows[:8]] == [row.arm.label for row in board.tables[0].rows]
    assert all(f"| {row['run']} |" in markdown for row in rows)
    assert "160 samples" not in markdown
    assert "40 items × 4 samples" in markdown
    assert "n 160" in markdown


def test_paths_that_are_no_runs_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_runs([tmp_path / "empty", tmp_path / "gone"])
    assert len(caught.value.mistakes) == 2


def test_baselines_come_first_and_trials_by_number(tmp_path: Path, run_maker: Any) -> None:
    for name in ("10", "9", "0", "ppo"):
        run_maker(tmp_path / "trials" / name, evaluated=False)
    assert [path.name for path in find_runs([tmp_path])] == ["ppo", "0", "9", "10"]
