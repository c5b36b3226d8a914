"""Rows of several seeds and suites: who is grouped, tied, averaged, compared; where numbers come from; reported."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steer_analysis.arms import group_runs
from steer_analysis.board_json import to_json
from steer_analysis.combined import combine
from steer_analysis.leaderboard import BOOTSTRAP_SEED, Leaderboard, build_leaderboard, ranks
from steer_analysis.metrics import accuracy
from steer_analysis.provenance import NOT_RECORDED, row_facts
from steer_analysis.reported import beside, load_reported
from steer_analysis.runs import find_runs, read_runs
from steer_analysis.statistics import Estimate, bootstrap_mean
from steer_analysis.tables import to_csv, to_markdown
from steer_experiments.data.sources import GROUPS
from steer_experiments.run_dir import write_json, write_yaml
from steer_sweeps.cli import main

MATH6 = GROUPS["math6"]
SIX = {suite: {"suite": suite, "n_items": 12, "n_samples": 2 if "a" in suite[:1] else 1} for suite in MATH6}


def board_of(*paths: Path) -> Leaderboard:
    return build_leaderboard(read_runs(paths))


def seeds_of(maker: Any, folder: Path, name: str, seeds: int, **settings: Any) -> None:
    for seed in range(seeds):
        maker(folder / f"{name}-{seed}", seed=seed, **settings)


def test_seeds_are_one_row_and_settings_are_not(tmp_path: Path, run_maker: Any) -> None:
    seeds_of(run_maker, tmp_path, "grpo", 3, method="ppo")
    seeds_of(run_maker, tmp_path, "steer", 3, steer={"lambda_min": 0.7})
    seeds_of(run_maker, tmp_path, "steer-low", 2, steer={"lambda_min": 0.6})
    rows = {row.arm.label: row for row in board_of(tmp_path).tables[0].rows}
    assert {label: row.arm.seeds for label, row in rows.items()} == {
        "grpo": (0, 1, 2),
        "steer": (0, 1, 2),
        "steer-low": (0, 1),
    }
    steer = rows["steer"]
    assert steer.accuracy.n_seeds == 3
    assert sum(steer.verdicts.values()) == 3 * 160
    assert steer.accuracy.mean == pytest.approx(steer.verdicts["correct"] / 480)
    alone = bootstrap_mean(accuracy(steer.scores).values_SI.mean(axis=0), BOOTSTRAP_SEED)
    assert alone.mean == pytest.approx(steer.accuracy.mean)
    assert steer.difference
    assert steer.difference.mean == pytest.approx(steer.accuracy.mean - rows["grpo"].accuracy.mean)
    entropies = [run.metrics[-2]["train/steer/entropy"] for run in steer.runs]
    assert steer.entropy_final == pytest.approx(np.mean(entropies))


def test_a_seed_that_is_there_twice_is_no_further_seed(tmp_path: Path, run_maker: Any) -> None:
    paths = [run_maker(tmp_path / name, seed=0) for name in ("a", "b")]
    assert [arm.label for arm in group_runs(read_runs(paths))] == ["a", "b"]


def test_a_failed_seed_is_left_out_and_said(tmp_path: Path, run_maker: Any) -> None:
    seeds_of(run_maker, tmp_path, "grpo", 2, method="ppo")
    run_maker(tmp_path / "grpo-2", method="ppo", seed=2, state="failed", reason="lost", evaluated=False)
    board = board_of(tmp_path)
    row = board.tables[0].rows[0]
    assert [run.seed for run in row.runs] == [0, 1]
    assert "0, 1 (2 of 3)" in to_markdown(board)
    assert [one.run.label for one in board.unranked] == ["grpo-2"]


def test_seed_folders_of_a_study_are_found(tmp_path: Path, run_maker: Any) -> None:
    for seed in (0, 1, 10, 2):
        run_maker(tmp_path / "trials" / "4" / f"seed-{seed}", seed=seed, evaluated=False)
    run_maker(tmp_path / "trials" / "ppo", "ppo", evaluated=False)
    assert [path.name for path in find_runs([tmp_path])] == ["ppo", "seed-0", "seed-1", "seed-2", "seed-10"]
    runs = read_runs([tmp_path])
    assert {run.study for run in runs} == {tmp_path}
    assert [arm.label for arm in group_runs(runs)] == ["ppo", "trial 4"]


def test_an_evaluated_model_without_a_run_has_a_row(tmp_path: Path, evaluation_maker: Any, run_maker: Any) -> None:
    (tmp_path / "base").mkdir()
    evaluation_maker(tmp_path / "base", 0.3, {}, ())
    run_maker(tmp_path / "steer")
    rows = {row.arm.label: row for row in board_of(tmp_path).tables[0].rows}
    assert rows["base"].arm.method == "base model"
    facts = dict(row_facts(rows["base"], board_of(tmp_path).tables[0].protocol))
    assert facts["training seeds"] == "none"
    assert facts["GPU-hours of training"] == NOT_RECORDED


def test_ranks_by_hand() -> None:
    intervals = [(0.8, 0.9), (0.7, 0.82), (0.5, 0.7), (0.1, 0.2)]
    found = ranks([Estimate((low + high) / 2, low, high, 10) for low, high in intervals])
    assert found == [(1, 2), (1, 3), (2, 3), (4, 4)]  # touching intervals overlap
    assert ranks([]) == []


def test_ties_share_their_rank_in_every_format(tmp_path: Path, run_maker: Any) -> None:
    for name, skill in (("a", 0.8), ("b", 0.79), ("c", 0.1)):
        run_maker(tmp_path / name, skill=skill)
    board = board_of(tmp_path)
    assert [(row.first, row.last) for row in board.tables[0].rows] == [(1, 2), (1, 2), (3, 3)]
    assert to_markdown(board).count("| 1–2 |") == 2
    assert [row["rank"] for row in csv.DictReader(io.StringIO(to_csv(board)))] == ["1", "1", "3"]
    assert [row["rank"] for row in json.loads(to_json(board))["tables"][0]["rows"]] == [[1, 2], [1, 2], [3, 3]]


def test_the_vanilla_arm_is_the_one_without_an_intervention(tmp_path: Path, run_maker: Any) -> None:
    """Another clip range is an intervention: it is compared with plain ppo, and nothing is compared with it."""
    run_maker(tmp_path / "grpo", "ppo", 0.4)
    run_maker(tmp_path / "steer", "steer", 0.6)
    higher = run_maker(tmp_path / "clip-higher", "ppo", 0.7)
    config = (higher / "config.yaml").read_text()
    (higher / "config.yaml").write_text(config.replace("  actor:\n", "  actor:\n    eps_clip_low_high: [0.2, 0.28]\n"))
    rows = {row.arm.label: row for row in board_of(tmp_path).tables[0].rows}
    assert rows["grpo"].difference is None
    for name in ("steer", "clip-higher"):
        paired = rows[name].difference
        assert paired
        assert paired.mean == pytest.approx(rows[name].accuracy.mean - rows["grpo"].accuracy.mean)


def test_no_baseline_of_another_training(tmp_path: Path, run_maker: Any) -> None:
    other = run_maker(tmp_path / "grpo", "ppo")
    write_yaml(other / "config.yaml", {"seed": 0, "openrlhf": {"actor": {"adam": {"lr": 1e-6}}}, "task": {"name": "x"}})
    run_maker(tmp_path / "steer")
    assert all(row.difference is None for row in board_of(tmp_path).tables[0].rows)


@pytest.fixture
def six(tmp_path: Path, run_maker: Any, evaluation_maker: Any) -> Path:
    """Two arms with three seeds on the six suites; a third arm lacks one suite."""
    for name, method, skill in (("grpo", "ppo", 0.4), ("steer", "steer", 0.6), ("half", "clip_cov", 0.9)):
        for seed in range(3):
            run = run_maker(tmp_path / f"{name}-{seed}", method, skill, seed=seed, evaluated=False)
            for suite, protocol in SIX.items():
                if name != "half" or suite != "amc23":
                    evaluation_maker(run, skill, protocol, ())
    return tmp_path


def test_an_average_needs_every_suite(six: Path) -> None:
    (table,) = combine(board_of(six))
    assert table.suites == MATH6
    rows = {row.arm.label: row for row in table.rows}
    assert [row.arm.label for row in table.rows] == ["steer", "grpo", "half"]
    assert rows["half"].average is None
    assert (rows["half"].first, rows["half"].difference) == (None, None)
    assert len(rows["half"].by_suite) == 5
    for name in ("steer", "grpo"):
        average = rows[name].average
        assert average
        assert average.n_items == 6 * 12
        assert average.n_seeds == 3
        assert average.mean == pytest.approx(np.mean([one.accuracy.mean for one in rows[name].by_suite.values()]))
        assert average.low < average.mean < average.high
    paired, ours, base = rows["steer"].difference, rows["steer"].average, rows["grpo"].average
    assert paired
    assert ours
    assert base
    assert paired.mean == pytest.approx(ours.mean - base.mean)
    assert "| – | half | – |" in to_markdown(board_of(six))


def test_only_seeds_with_every_suite_are_averaged(six: Path) -> None:
    (six / "steer-2" / "eval" / "amc23.meta.json").unlink()
    row = next(row for row in combine(board_of(six))[0].rows if row.arm.label == "steer")
    assert row.average
    assert row.average.n_seeds == 2
    assert row.by_suite["aime24"].accuracy.n_seeds == 3


def test_other_protocols_are_other_averages(six: Path, run_maker: Any, evaluation_maker: Any) -> None:
    run = run_maker(six / "greedy", evaluated=False, steer={"lambda_min": 0.5})
    for protocol in SIX.values():
        evaluation_maker(run, 0.5, protocol | {"temperature": 0.0}, ())
    found = combine(board_of(six))
    assert [[row.arm.label for row in table.rows] for table in found] == [["steer", "grpo", "half"], ["greedy"]]


def test_reported_rows_agree_with_themselves() -> None:
    (paper,) = load_reported()
    assert len(paper.rows) == 27
    assert paper.suites == MATH6
    for row in paper.rows:
        assert row.average == pytest.approx(sum(row.accuracy.values()) / 6, abs=0.0501)
    best = {row.model: row.average for row in paper.rows if row.method == "STEER" and row.setting == "main"}
    assert best == {"Qwen2.5-Math-7B": 48.6, "Qwen2.5-Math-1.5B": 38.2, "Qwen2.5-14B": 45.2}


def test_reported_rows_stand_apart_and_are_never_ranked(six: Path, study: Path) -> None:
    board = board_of(six)
    assert beside(board) == load_reported()
    assert beside(board_of(study)) == ()  # nobody reports the tiny suite
    markdown = to_markdown(board)
    ours, _, theirs = markdown.partition("## Reported: ")
    assert "arXiv 2510.10150" in theirs
    assert "Never ranked" in theirs
    assert "| Qwen2.5-Math-7B | main | STEER | 36.2 | 16.1 | 72.1 | 82.2 | 41.7 | 43.0 | 48.6 |" in theirs
    assert "Qwen2.5" not in ours
    rows = [row for row in csv.DictReader(io.StringIO(to_csv(board))) if row["kind"] == "reported"]
    assert len(rows) == 27 * 6
    assert {row["rank"] for row in rows} == {""}
    assert {row["accuracy_low"] for row in rows} == {""}
    found = json.loads(to_json(board))["reported"][0]
    assert found["ranked"] is False
    assert len(found["rows"]) == 27


def test_where_a_row_comes_from(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a")
    board = board_of(run)
    facts = dict(row_facts(board.tables[0].rows[0], board.tables[0].protocol))
    assert facts["n"] == "40 items × 4 samples"
    assert facts["grader"] == "integer@1"
    assert facts["training code"] == "commit c0ffee"
    assert facts["evaluation code"] == NOT_RECORDED
    assert facts["checkpoint rule"].startswith("final")
    assert facts["GPU-hours of training"] == NOT_RECORDED  # env.json does not say whether there was a GPU
    found = json.loads(to_json(board))["tables"][0]["rows"][0]
    assert found["provenance"] == facts
    assert found["pass_at_k"]["1"]["mean"] == pytest.approx(found["accuracy"]["mean"])


@pytest.mark.parametrize(
    ("gpu", "colocated", "wanted"), [(False, False, "no GPU; 0.03 hours"), (True, True, "0.22"), (True, False, "0.33")]
)
def test_gpu_hours_by_hand(tmp_path: Path, run_maker: Any, gpu: bool, colocated: bool, wanted: str) -> None:
    """100 seconds on 8 GPUs of the actor, and 4 of the engines where those are not the same."""
    run = run_maker(tmp_path / "a")
    write_json(run / "env.json", {"gpu": gpu})
    actor, engines = {"num_nodes": 1, "num_gpus_per_node": 8}, {"num_engines": 2, "tensor_parallel_size": 2}
    flags = {"actor": actor, "vllm": engines, "algo": {"kl": {"init_coef": 0}}, "train": {"colocate_all": colocated}}
    write_json(run / "host_args.json", flags)
    board = board_of(run)
    facts = dict(row_facts(board.tables[0].rows[0], board.tables[0].protocol))
    assert facts["GPU-hours of training"].startswith(wanted)


def test_json_has_no_nan_and_every_run(study: Path) -> None:
    found = json.loads(to_json(board_of(study)), parse_constant=pytest.fail)
    assert len(found["tables"][0]["rows"]) == 8
    assert {one["run"] for one in found["without_a_row"]} == {"trial 6", "trial 7"}


@pytest.mark.parametrize(("ending", "start"), [("json", "{"), ("html", "<!doctype html>"), ("md", "# Leaderboard")])
def test_the_command_writes_every_format(
    study: Path, capsys: pytest.CaptureFixture[str], ending: str, start: str
) -> None:
    output = study / f"board.{ending}"
    assert main(["leaderboard", str(study), "--output", str(output)]) == 0
    assert output.read_text().lstrip().startswith(start)
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {output}\n")
    assert ("<html" in printed) is False  # a page is not for a terminal
    assert main(["leaderboard", str(study), "--format", ending]) == 0
    assert capsys.readouterr().out.lstrip().startswith(start)


def test_a_folder_gets_every_format(study: Path) -> None:
    assert main(["leaderboard", str(study), "--output", str(study)]) == 0
    assert {path.suffix for path in study.glob("leaderboard.*")} == {".md", ".csv", ".json", ".html"}
