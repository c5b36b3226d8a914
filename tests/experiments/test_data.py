"""Questions from files: every item once and whole, or an error that names the item."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.data.catalogue import expand, open_source, read_suites
from steer_experiments.data.hub import hub_rows
from steer_experiments.data.load import SHOWN, collect, find_file, load_suite_source
from steer_experiments.data.questions import TEMPLATES, Problem, bare, content_sha256, put, same_key, template_text
from steer_experiments.data.rows import GSM8K, Columns, asked, read_rows
from steer_experiments.data.sources import GROUPS, SUITES, TRAINING, Hub, Source
from steer_openrlhf.errors import ConfigError

REAL = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the released benchmark files are not here (../shared/data)")
SMALL = Source("small", 2, ("small.jsonl", "small.parquet"), copies=32)
problems = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60).map(str.strip).filter(bool)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def verl(problem: str, gold: Any, index: int = 0) -> dict[str, Any]:
    prompt = TEMPLATES["dapo"].replace("{problem}", problem)
    extra = {"index": index, "raw_problem": "cut " + problem[:3]}
    return {
        "data_source": "small_boxed",
        "prompt": [{"content": prompt, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": extra,
    }


def mistakes(path: Path, source: Source = SMALL) -> str:
    with pytest.raises(ConfigError) as caught:
        load_suite_source(source, path)
    return str(caught.value)


# -- how a question is put ---------------------------------------------------------------------------------------------


@given(problems, st.sampled_from(["boxed", "dapo", "dapo_boxed"]))
def test_a_template_comes_off_as_it_went_on(problem: str, name: str) -> None:
    prompt = TEMPLATES[name].replace("{problem}", problem)
    found, template = bare(prompt)
    if "{problem}" not in problem:
        assert (found, template) == (problem, name)


@given(problems)
def test_a_plain_problem_is_left_alone(problem: str) -> None:
    if not any(part and part in problem for text in TEMPLATES.values() for part in text.split("{problem}")):
        assert bare(problem) == (problem, "plain")


def test_the_chinese_instruction_comes_off_however_often_it_stands() -> None:
    line = '让我们一步一步地思考。请以"Answer: \\boxed{<final_answer>}"的格式输出最终答案。请只输出最终答案的数值。'
    curly = line.replace('"Answer', "“Answer").replace('}"', "}”")
    assert bare(f"求 1+1。\n{line}") == ("求 1+1。", "chinese")
    assert bare(f"求 1+1。\n{curly}\n{line}") == ("求 1+1。", "chinese")


def test_a_question_is_put_by_name_by_text_or_as_its_file_has_it() -> None:
    one = Problem("a/1", "1+{1}?", "2", "a", "Say 1+{1}?", "plain")
    assert put(one, "boxed") == r"1+{1}? Let's think step by step and output the final answer within \boxed{}."
    assert put(one, "Q: {problem}\nA:") == "Q: 1+{1}?\nA:"
    assert put(one, "file") == "Say 1+{1}?"
    with pytest.raises(ConfigError, match="did you mean 'boxed'"):
        template_text("boxes")


def test_spacing_does_not_make_another_question() -> None:
    assert same_key(r"Find $x^2 \, + \left( 1 \right)$.") == same_key("Find  x^2+(1) .")
    assert same_key(r"\dfrac12") == same_key(r"\frac12")
    assert same_key("x^2 - 1") != same_key("x^2 + 1")


def test_the_hash_sees_problems_and_golds_and_nothing_else() -> None:
    one, two = Problem("a/1", "p", "1", "a", "p", "plain"), Problem("a/2", "q", "2", "a", "q", "plain")
    assert content_sha256([one, two]) == content_sha256([two, replace(one, id="b", prompt="Say p", row=9)])
    assert content_sha256([one, two]) != content_sha256([one, replace(two, gold="3")])


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "problem", "gold"),
    [
        (verl("What is 1+1?", "2"), Columns(), "What is 1+1?", "2"),
        ({"problem": " p ", "answer": 7}, Columns(), "p", "7"),
        ({"problem": "p", "answer": 7.0}, Columns(), "p", "7"),
        ({"problem": "p", "answer": 0.5}, Columns(), "p", "0.5"),
        ({"question": "p", "final_answer": ["3", "4"]}, Columns("question", "final_answer"), "p", "3, 4"),
        ({"question": "p", "answer": "so 1,000 + 1\n#### 1,001"}, GSM8K, "p", "1001"),
        ({"input": "p", "label": "2", "datasource": "x", "id": "i", "level": "l"}, Columns(), "p", "2"),
    ],
)
def test_layouts_are_recognised(row: dict[str, Any], columns: Columns, problem: str, gold: str) -> None:
    found, wrong = asked(row, columns)
    assert not wrong
    assert found is not None
    assert (found.problem, found.gold) == (problem, gold)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (verl("p", ""), "reward_model.ground_truth = '': the gold answer is empty"),
        (verl("p", None), "the gold answer is empty"),
        (verl("p", "1") | {"prompt": []}, "one user message"),
        (verl("p", "1") | {"prompt": [{"role": "system", "content": "x"}]}, "one user message"),
        ({"problem": "", "answer": "1"}, "problem = ''"),
        ({"problem": "p", "answer": "  "}, "the gold answer is empty"),
        ({"problem": "p", "answer": []}, "the gold answer is empty"),
        ({"question": "p", "answer": "1"}, "has no column problem; it has question, answer"),
        ({"problem": "p", "answer": True}, "the gold answer is empty"),
    ],
)
def test_a_row_that_asks_nothing_says_why(row: dict[str, Any], said: str) -> None:
    found, wrong = asked(row, Columns())
    assert found is None
    assert any(said in one for one in wrong), wrong


def test_parquet_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    rows = [verl(f"What is {n}+1?", str(n + 1), n) for n in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(read_rows(write(tmp_path / "a.jsonl", rows)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 not really", "not a whole parquet file"),
        ("a.jsonl", b'{"problem": "p", "answer": "1"}\n{torn', r"a\.jsonl:2: is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: is not a JSON object"),
        ("a.csv", b"problem,answer\n", r"ends in \.parquet or \.jsonl"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        list(read_rows(tmp_path / name))


# -- a suite is whole --------------------------------------------------------------------------------------------------


def test_copies_are_recognised_whatever_their_order(tmp_path: Path) -> None:
    rows = [verl("What is 1+1?", "2"), verl("What is 1+2?", "3")]
    inside = load_suite_source(SMALL, write(tmp_path / "small.jsonl", rows * 32))
    blocks = load_suite_source(SMALL, write(tmp_path / "blocks.jsonl", [row for row in rows for _ in range(32)]))
    once = load_suite_source(SMALL, write(tmp_path / "once.jsonl", rows))
    assert [one.problem for one in inside.problems] == ["What is 1+1?", "What is 1+2?"]
    assert (inside.copies, blocks.copies, once.copies) == (32, 32, 1)
    assert inside.sha256 == blocks.sha256 == once.sha256
    assert [one.id for one in inside.problems] == [one.id for one in once.problems]


def test_one_copy_too_many_or_too_few_is_an_item_twice(tmp_path: Path) -> None:
    rows = [verl("What is 1+1?", "2"), verl("What is 1+2?", "3")]
    told = mistakes(write(tmp_path / "a.jsonl", [*rows * 32, rows[0]]))
    assert "a.jsonl:1: item small/" in told
    assert "stands there 33 times; expected 32" in told
    assert "stands there 2 times; expected 1" in mistakes(write(tmp_path / "b.jsonl", [*rows, rows[1]]))
    assert "stands there 7 times; expected 1" in mistakes(write(tmp_path / "c.jsonl", rows * 7))


def test_the_same_question_with_other_spacing_or_gold_is_an_item_twice(tmp_path: Path) -> None:
    rows = [{"problem": "What is $1+1$?", "answer": "2"}, {"problem": "What is  $1 + 1$ ?", "answer": "3"}]
    told = mistakes(write(tmp_path / "a.jsonl", rows))
    assert "a.jsonl:2: item small/" in told
    assert "was already in row 1, with the golds '2' and '3'" in told


def test_a_gold_the_grader_cannot_read_is_an_error_unless_it_is_named(tmp_path: Path) -> None:
    rows = [{"problem": "Which?", "answer": "E_{1},E_{2}"}, {"problem": "How many?", "answer": "\\frac{1}{2}"}]
    path = write(tmp_path / "a.jsonl", rows)
    told = mistakes(path)
    assert "a.jsonl:1: item small/" in told
    assert "cannot be read by math-verify" in told
    assert "a.jsonl:2" not in told
    named = replace(SMALL, compared_as_text={"E_{1},E_{2}": "a pair of symbols"})
    assert len(load_suite_source(named, path).problems) == 2


def test_every_mistake_at_once_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": ""} for _ in range(SHOWN + 3)]
    told = mistakes(write(tmp_path / "a.jsonl", rows))
    assert f"a.jsonl:{SHOWN}: " in told
    assert "and 3 more" in told


def test_a_shrunk_or_changed_suite_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": "p", "answer": "1"}])
    assert "holds 1 items, expected 2" in mistakes(path)
    pinned = replace(SMALL, expected_n=1, sha256="0" * 64, released="somewhere")
    assert "not that of small as released (somewhere)" in mistakes(path, pinned)


def test_an_id_of_the_file_is_kept(tmp_path: Path) -> None:
    source = replace(SMALL, columns=Columns(id="uid", level="hard"))
    rows = [{"problem": str(n), "answer": "1", "uid": f"q{n}", "hard": n} for n in range(2)]
    found = collect(source, read_rows(write(tmp_path / "a.jsonl", rows)), "a").problems
    assert [(one.id, one.level) for one in found] == [("small/q0", "0"), ("small/q1", "1")]


# -- the released files ------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("name", GROUPS["math6"])
def test_the_released_suites_are_the_pinned_ones(name: str) -> None:
    source = SUITES[name]
    loaded = load_suite_source(source, find_file(source, REAL))
    assert (len(loaded.problems), loaded.sha256, loaded.copies) == (source.expected_n, source.sha256, source.copies)
    assert loaded.revision == source.released
    assert not [one for one in loaded.problems if "Remember to put your answer" in one.problem]
    assert len({one.id for one in loaded.problems}) == source.expected_n


@real
def test_a_changed_gold_of_a_released_file_is_noticed(tmp_path: Path) -> None:
    rows = pyarrow.parquet.read_table(REAL / "aime24.parquet").to_pylist()
    for row in rows:
        if row["reward_model"]["ground_truth"] == "540":
            row["reward_model"]["ground_truth"] = "541"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "aime24.parquet")
    assert "is not that of aime24 as released" in mistakes(tmp_path / "aime24.parquet", SUITES["aime24"])


@real
def test_a_torn_released_file_is_noticed(tmp_path: Path) -> None:
    data = (REAL / "aime24.parquet").read_bytes()
    (tmp_path / "aime24.parquet").write_bytes(data[: len(data) // 2])
    assert "not a whole parquet file" in mistakes(tmp_path / "aime24.parquet", SUITES["aime24"])


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [*SUITES.values(), *TRAINING.values()], ids=lambda source: source.name)
def test_a_hub_revision_is_a_commit_or_is_refused(source: Source) -> None:
    assert source.hub is not None
    if source.hub.revision is None:
        with pytest.raises(ConfigError, match=r"no revision of .* is pinned here"):
            load_suite_source(source)
    else:
        assert len(source.hub.revision) == 40
    with pytest.raises(ConfigError, match="must be a full commit id"):
        load_suite_source(source, revision="main")


def test_rows_come_through_the_real_datasets_library(tmp_path: Path) -> None:
    """``datasets`` takes a folder where it takes a hub id; the rest of the way is the hub's."""
    write(tmp_path / "test.jsonl", [{"question": f"{n}+1?", "answer": [str(n + 1)]} for n in range(2)])
    hub = Hub(str(tmp_path), "test", None, columns=Columns("question", "answer"))
    found = collect(replace(SMALL, hub=hub).read_from(None), hub_rows(hub, "0" * 40), "there").problems
    assert [(one.problem, one.gold, one.row) for one in found] == [("0+1?", "1", 1), ("1+1?", "2", 2)]
    with pytest.raises(ConfigError, match="cannot be read from the hub: Bad split: train"):
        list(hub_rows(replace(hub, split="train"), "0" * 40))


# -- suites of a user --------------------------------------------------------------------------------------------------

MINE = """
suites:
  mine:
    file: questions.jsonl
    problem: question
    gold: solution
    expected_n: 2
    question: "Q: {problem}"
groups:
  both: [mine, aime24]
"""


def test_a_suites_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    write(tmp_path / "questions.jsonl", [{"question": f"{n}+1?", "solution": n + 1} for n in range(2)])
    assert expand(str(path)) == (f"{path}:mine",)
    assert expand(f"{path}:both") == (f"{path}:mine", "aime24")
    source, folder = open_source(f"{path}:mine")
    loaded = load_suite_source(source, find_file(source, folder))
    assert [put(one, source.template) for one in loaded.problems] == ["Q: 0+1?", "Q: 1+1?"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  mine:\n", "  aime24:\n", "is the name of a suite that exists"),
        ("  mine:\n", "  'a/b':\n", "a name is letters"),
        ("    file: questions.jsonl\n", "", "give exactly one of file, hub"),
        ("    file: questions.jsonl\n", "    hub: {repo: org/name, revision: main}\n", "revision"),
        ("expected_n: 2", "expected_m: 2", "expected_n"),
        ('question: "Q: {problem}"', "question: bxoed", "question template 'bxoed'"),
        ("[mine, aime24]", "[mine, aime99]", "groups.both: suite 'aime99' is unknown; known: mine, aime24"),
    ],
)
def test_a_wrong_suites_file_says_what(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_suites(path)
    assert said in str(caught.value)


def test_an_unknown_suite_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known: math6, aime24.*did you mean 'math6'"):
        expand("math7")
    (tmp_path / "mine.yaml").write_text(MINE)
    with pytest.raises(ConfigError, match="suite 'mime' is unknown; known: both, mine; did you mean 'mine'"):
        expand(f"{tmp_path / 'mine.yaml'}:mime")
