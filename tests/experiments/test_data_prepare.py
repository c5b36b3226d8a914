"""Prompt files: the same bytes again, nothing twice, what the evaluation asks is found; and the task of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.config import load_recipe
from steer_experiments.data import prepare as module
from steer_experiments.data.command import describe
from steer_experiments.data.contamination import SHARE, Index, N
from steer_experiments.data.prepare import Wanted, prepare
from steer_experiments.data.questions import Problem, words
from steer_experiments.data.sources import TRAINING, Source
from steer_experiments.dry_run import describe as dry_run
from steer_experiments.tasks import prepare_task
from steer_experiments.tasks.math import MathConfig, split
from steer_openrlhf.errors import ConfigError

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the released benchmark files are not here (../shared/data)")

SUITE_FILE = """
suites:
  exam:
    file: exam.jsonl
    expected_n: 3
"""
LONG = "A train leaves the station at noon and travels east for {n} hours at a constant speed before it stops to wait"
EXAM = [
    {"problem": LONG.format(n=3) + " for the mail. How far does it go?", "answer": "7"},
    {"problem": "What is $2^{10} - 1$?", "answer": "1023"},
    {"problem": "Something that no training file asks, in any of its many different wordings at all.", "answer": "1"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(text: str, gold: str = "1", name: str = "t/1") -> Problem:
    return Problem(name, text, gold, "t", text, "plain")


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training file with repetitions, a contradiction, and two questions of the exam; known as the set ``drill``."""
    (tmp_path / "suites.yaml").write_text(SUITE_FILE)
    write(tmp_path / "exam.jsonl", EXAM)
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(1, 7)]
    rows += [{"problem": "What is 1+1 ?", "answer": 2}, {"problem": "What is 2+2 ?", "answer": 5}]
    rows += [{"problem": "What is 2^{10} - 1 ?", "answer": 1023}]
    rows += [{"problem": LONG.format(n=3) + " for coal. When is it back?", "answer": 9}]
    monkeypatch.setitem(TRAINING, "drill", Source("drill", None, ("drill.jsonl",), template="boxed"))
    return write(tmp_path / "drill.jsonl", rows * 3)


def wanted(path: Path, **more: Any) -> Wanted:
    return Wanted("drill", path, against=(f"{path.parent / 'suites.yaml'}:exam",), **more)


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_each_question_once_with_what_was_found(training: Path, tmp_path: Path) -> None:
    manifest = prepare(wanted(training), tmp_path / "out")
    written = rows(tmp_path / "out")
    assert [row["label"] for row in written] == ["2", "4", "6", "8", "10", "12", "2", "5", "1023", "9"]
    assert written[0]["input"].startswith("What is 1 + 1? Let's think")
    assert {row["datasource"] for row in written} == {"drill"}
    assert len({row["id"] for row in written}) == len(written)
    assert (manifest["rows"], manifest["different"], manifest["copies"]) == (30, 10, {"3": 10})
    assert manifest["duplicates"]["same_question_and_gold"] == 1
    assert len(manifest["duplicates"]["same_question_other_gold"]) == 2
    exam = manifest["contamination"]["suites"]["exam"]
    assert (exam["items"], exam["exact"], exam["overlap"]) == (3, 1, 1)
    found = sorted((one["how"], one["same_gold"]) for one in exam["found"])
    assert found == [("exact", True), ("overlap", False)]
    assert "  exam: 1 of 3 items exactly, 1 by most of their words" in describe(manifest)


def test_what_is_dropped_is_gone_and_told(training: Path, tmp_path: Path) -> None:
    more = {"drop_contaminated": True, "drop_duplicates": True}
    manifest = prepare(wanted(training, **more), tmp_path / "out")
    assert [row["label"] for row in rows(tmp_path / "out")] == ["2", "6", "8", "10", "12"]
    assert manifest["n"] == 5
    assert manifest["different"] == 10


def test_the_same_again_is_the_same_bytes(training: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(wanted(training, most=4), tmp_path / name)
    for file in ("train.jsonl", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert len(rows(tmp_path / "one")) == 4
    assert str(tmp_path) not in (tmp_path / "one" / "manifest.json").read_text()


def test_a_failed_preparation_leaves_the_old_files(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prepare(wanted(training), out)
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())

    def full(*_: Any) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "file_digest", full)
    with pytest.raises(OSError, match="no space"):
        prepare(wanted(training, most=2), out)
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    assert not list(tmp_path.glob(".out*"))


def test_a_folder_of_something_else_is_not_replaced(training: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="was not prepared before"):
        prepare(wanted(training), tmp_path / "out")


def test_nothing_to_compare_with_is_refused_unless_one_says_so(training: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no evaluation suite to compare with; give --data-dir"):
        prepare(Wanted("drill", training), tmp_path / "out")
    manifest = prepare(Wanted("drill", training, unchecked=True), tmp_path / "out")
    assert "compared with no evaluation suite" in describe(manifest)[-1]


def test_unknown_and_empty_are_named(training: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite 'dapo' is unknown; known: .*dapo-math-17k"):
        prepare(Wanted("dapo", training), tmp_path / "out")
    with pytest.raises(ConfigError, match="is a group; prepare aime24"):
        prepare(Wanted("math6", training), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--from .*holds none of drill\.jsonl"):
        prepare(Wanted("drill", tmp_path / "nowhere"), tmp_path / "out")


def test_the_command(training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from steer_sweeps.cli import main

    exam = f"{training.parent / 'suites.yaml'}:exam"
    line = ["data", "prepare", "drill", "--from", str(training), "--output", str(tmp_path / "out"), "--against", exam]
    assert main(line) == 0
    assert "10 questions of 10 different ones in 30 rows (10 stood there 3 times)" in capsys.readouterr().out
    assert main(["data", "check", exam]) == 0
    assert "exam: 3 items; file exam.jsonl" in capsys.readouterr().out
    assert main(["data", "list", "--data-dir", str(tmp_path)]) == 0
    assert "group math6: aime24" in capsys.readouterr().out
    assert main(["data", "check", "amc23", "--data-dir", str(tmp_path)]) == 2
    assert "no revision of math-ai/amc23 is pinned" in capsys.readouterr().err


def test_openrlhfs_reader_gets_every_field_as_text(training: Path, tmp_path: Path) -> None:
    """OpenRLHF reads a jsonl file with ``datasets.load_dataset("json")``, which guesses types."""
    import datasets

    prepare(wanted(training), tmp_path / "out")
    path = str(tmp_path / "out" / "train.jsonl")
    read = datasets.load_dataset("json", data_files=path, cache_dir=str(tmp_path / "hf"))["train"]
    assert list(read) == rows(tmp_path / "out")


# -- contamination -----------------------------------------------------------------------------------------------------


def slow(item: str, training: str) -> float:
    """The share of the item's n-grams that stand in the training question, gram by gram."""
    mine, other = words(item), words(training)
    n = min(N, len(mine))
    grams = {" ".join(mine[at : at + n]) for at in range(len(mine) - n + 1)}
    theirs = {" ".join(other[at : at + n]) for at in range(len(other) - n + 1)}
    return len(grams & theirs) / len(grams)


texts = st.lists(st.sampled_from("abcd"), min_size=8, max_size=30).map(" ".join)


@given(texts, texts, st.integers(0, 20), st.integers(0, 20))
def test_overlap_is_what_a_slow_comparison_says(item: str, other: str, start: int, length: int) -> None:
    training = f"{other} {' '.join(item.split()[start : start + length])} {other}"
    found = Index({"s": [problem(item, name="s/1")]}).hits(problem(training))
    share = slow(item, training)
    assert bool(found) == (share >= SHARE)
    if found:
        assert found[0].share == pytest.approx(share, abs=1e-3)


def test_a_stock_phrase_is_no_contamination() -> None:
    stock = "where m and n are relatively prime positive integers, find the value of m plus n"
    item = "The probability that two random points of a square of side one are closer than a half is m/n, " + stock
    training = "The area of the largest circle inside a triangle with sides five, six and seven is m/n, " + stock
    assert not Index({"s": [problem(item)]}).hits(problem(training))


def test_exact_needs_the_operators_and_overlap_does_not() -> None:
    item = problem("What is the smallest positive integer $n$ such that all the roots of $z^4 + z^2 + 1 = 0$ are real?")
    index = Index({"s": [item]})
    same = problem(r"what is the smallest positive integer \(n\) such that all the roots of \(z^4+z^2+1=0\) are real")
    other = problem(
        "What is the smallest positive integer $n$ such that all the roots of $z^4 - z^2 + 1 = 0$ are real?"
    )
    assert [hit.how for hit in index.hits(same)] == ["exact"]
    assert [(hit.how, hit.share) for hit in index.hits(other)] == [("overlap", 1.0)]


def test_a_short_question_is_compared_exactly_alone() -> None:
    index = Index({"s": [problem("Compute $2+3$.")]})
    assert [hit.how for hit in index.hits(problem("compute 2 + 3"))] == ["exact"]
    assert not index.hits(problem("Compute 2+3 and then multiply it by 7."))


# -- the released training file ----------------------------------------------------------------------------------------


@real
def test_dapo(tmp_path: Path) -> None:
    manifest = prepare(Wanted("dapo-math-17k", REAL), tmp_path / "out", say=lambda _: None)
    assert manifest["source"] == TRAINING["dapo-math-17k"].released
    assert (manifest["n"], manifest["rows"]) == (17398, 17398)
    assert manifest["recognised_templates"] == {"chinese": 3282, "dapo_boxed": 14116}
    found = {name: (one["exact"], one["overlap"]) for name, one in manifest["contamination"]["suites"].items()}
    assert found["aime24"] == found["aime25"] == found["minerva_math"] == (0, 0)
    assert found["amc23"] == (8, 15), "of 20 overlapping pairs 17 have the same gold, 3 ask for another form of it"
    task = prepare_task(MathConfig(data=str(tmp_path / "out")), tmp_path / "cache")
    assert task.expected_n["validation"] == 128
    assert task.expected_n["train"] >= 16896, "the paper recipes take 33 rollouts of 512 an episode"


# -- the task ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEER_DATA", str(tmp_path / "data"))
    prepare(wanted(training), tmp_path / "data" / "drill")
    return tmp_path / "data" / "drill"


def test_held_out_questions_are_in_no_training_row(prepared: Path, tmp_path: Path) -> None:
    task = prepare_task(MathConfig(data="drill", validation_size=3), tmp_path / "cache")
    train, held_out = task.rows("train"), task.rows("validation")
    assert len(held_out) == 3
    assert {row["datasource"] for row in train} == {"math_train"}
    assert {row["datasource"] for row in held_out} == {"math_validation"}
    assert not {row["input"].replace(" ", "") for row in train} & {row["input"].replace(" ", "") for row in held_out}
    assert task.rows("test") == []
    by_path = prepare_task(MathConfig(data=str(prepared), validation_size=3), tmp_path / "cache")
    assert (by_path.train, by_path.content_hash) == (task.train, task.content_hash)


def test_which_are_held_out_does_not_depend_on_the_order(prepared: Path) -> None:
    given_ = rows(prepared)
    ids = {row["id"] for row in split(given_, 3)["validation"]}
    turned = {row["input"].replace(" ", "") for row in split(given_[::-1], 3)["validation"]}
    assert {row["input"].replace(" ", "") for row in given_ if row["id"] in ids} == turned


def test_data_that_is_not_there_or_was_changed_or_too_small(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run steer data prepare nothing"):
        prepare_task(MathConfig(data="nothing"), tmp_path / "cache")
    with pytest.raises(ConfigError, match="has 8 different questions; hold fewer out"):
        prepare_task(MathConfig(data="drill", validation_size=8), tmp_path / "cache")
    with (prepared / "train.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match="was changed since it was prepared"):
        prepare_task(MathConfig(data="drill", validation_size=3), tmp_path / "cache")


def test_a_paper_recipe_dry_runs_without_a_gpu(prepared: Path, tmp_path: Path) -> None:
    recipe = ROOT / "experiments" / "recipes" / "paper" / "qwen2.5-math-7b" / "steer.yaml"
    experiment = load_recipe(recipe, ["task.data=drill", "task.validation_size=3"])
    line = dry_run(experiment, tmp_path / "run")
    assert "--vllm.num_engines 8" in line
    assert "/math-" in line
    assert "reward_math.py" in line
    assert not (tmp_path / "run").exists()
