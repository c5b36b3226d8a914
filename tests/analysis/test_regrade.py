"""Grading again: nothing is generated, nothing is lost, and the change of protocol is on record."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steer_analysis.evaluate import verdict_of
from steer_analysis.records import RecordFile, load_evaluation
from steer_analysis.regrade import regrade_runs
from steer_experiments.grading import Grade


def eval_files(run: Path) -> tuple[Path, Path]:
    return run / "eval" / "tiny_test.jsonl", run / "eval" / "tiny_test.meta.json"


def test_every_answer_is_judged_again_and_the_texts_stay(tmp_path: Path, run_maker: Any) -> None:
    """The synthetic answers all say 4, and 4 is right; the integer grader wants a marker before it."""
    run = run_maker(tmp_path / "a")
    before = load_evaluation(run / "eval", "tiny_test")
    (done,) = regrade_runs([run], grader="math")
    after = load_evaluation(run / "eval", "tiny_test")
    assert (done.state, done.samples, done.old) == ("regraded", 160, "integer@1")
    assert [(r.key, r.seed, r.output) for r in after.records] == [(r.key, r.seed, r.output) for r in before.records]
    for old, new in zip(before.records, after.records, strict=True):
        assert new.verdict == ("truncated" if old.verdict == "truncated" else "correct")
        assert new.grader == done.new == after.meta.protocol.grader
    changed = sum(a.verdict != b.verdict for a, b in zip(before.records, after.records, strict=True))
    assert done.changed == changed > 0
    assert after.meta.protocol.hash != before.meta.protocol.hash
    (step,) = after.meta.context["regraded"]
    assert (step["from"], step["to"], step["verdicts_changed"]) == ("integer@1", done.new, changed)

    (back,) = regrade_runs([run], grader="integer")
    again = load_evaluation(run / "eval", "tiny_test")
    assert again.meta.protocol == before.meta.protocol
    assert len(again.meta.context["regraded"]) == 2
    assert {record.verdict for record in again.records} == {"unparsed", "truncated"}
    assert back.changed == sum(record.verdict == "correct" for record in after.records)


def test_killed_between_the_two_files_is_noticed_and_mended(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a")
    _, meta = eval_files(run)
    old = meta.read_text()
    regrade_runs([run], grader="math")
    meta.write_text(old)  # as if the meta file had not been reached
    with pytest.raises(ValueError, match="run steer regrade again"):
        load_evaluation(run / "eval", "tiny_test")
    regrade_runs([run], grader="math")
    assert load_evaluation(run / "eval", "tiny_test").meta.protocol.grader.startswith("math@")


def test_an_evaluation_that_is_not_complete_is_regraded_and_stays_so(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a")
    records, meta = eval_files(run)
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:30]))
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"complete": False}))
    (done,) = regrade_runs([run], grader="math")
    assert (done.state, done.samples) == ("regraded", 30)
    assert json.loads(meta.read_text())["complete"] is False


def test_what_cannot_be_regraded_is_named(tmp_path: Path, run_maker: Any) -> None:
    empty, run = run_maker(tmp_path / "a", evaluated=False), run_maker(tmp_path / "b")
    first, second = regrade_runs([empty, run], suites=["aime24"])
    assert (first.state, second.state) == ("failed", "failed")
    assert "run steer eval" in (second.reason or "")
    (third,) = regrade_runs([run], grader="maths")
    assert "did you mean 'math'" in (third.reason or "")
    assert load_evaluation(run / "eval", "tiny_test").meta.protocol.grader == "integer@1"


def test_a_writer_that_waited_for_a_regrading_writes_to_the_new_file(tmp_path: Path, run_maker: Any) -> None:
    run = run_maker(tmp_path / "a")
    path, _ = eval_files(run)
    code = (
        "import pathlib, sys; from steer_analysis.records import RecordFile; f = RecordFile(pathlib.Path(sys.argv[1]));"
    )
    code += "print(len(f.records), f.records[0].grader, flush=True)"
    with RecordFile(path) as file:
        other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        assert other.stdout
        assert "waiting for that one" in other.stdout.readline()
        file.replace([type(record)(**(vars(record) | {"grader": "new@1"})) for record in file.records[:7]])
    assert other.stdout.readline().split() == ["7", "new@1"]
    assert other.wait(60) == 0


@pytest.mark.parametrize(
    ("state", "truncated", "verdict"),
    [("correct", False, "correct"), ("timeout", False, "timeout"), ("correct", True, "truncated")],
)
def test_a_truncated_answer_is_no_other_verdict(state: Any, truncated: bool, verdict: str) -> None:
    found, reason = verdict_of(Grade(state, "4"), truncated, 32)
    assert found == verdict
    assert not truncated or (reason and f"graded as it is: {state}" in reason)
