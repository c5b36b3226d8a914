"""A suite is loaded whole or not at all, with every mistake at once."""

import json
from pathlib import Path

import pytest
from steer_analysis.suites import is_task_suite, load_suite, open_suite, suite_grader, suite_names, suite_source
from steer_experiments.data.sources import GROUPS, SUITES
from steer_openrlhf.errors import ConfigError

REAL = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the released benchmark files are not here (../shared/data)")


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(item: str, gold: str = "4") -> dict[str, str]:
    return {"id": item, "level": "easy", "input": "2+2=", "label": gold, "datasource": "tiny_test"}


def test_loads_items_in_order(tmp_path: Path) -> None:
    suite = load_suite("tiny_test", write(tmp_path / "a.jsonl", [row("a"), row("b", "5")]), expected_n=2)
    assert [(item.id, item.level, item.prompt, item.gold) for item in suite.items] == [
        ("a", "easy", "2+2=", "4"),
        ("b", "easy", "2+2=", "5"),
    ]


def test_content_hash_sees_golds_and_not_order(tmp_path: Path) -> None:
    first, turned, other = (
        load_suite("tiny_test", write(tmp_path / f"{n}.jsonl", rows), expected_n=2).content_hash
        for n, rows in enumerate([[row("a"), row("b")], [row("b"), row("a")], [row("a"), row("b", "5")]])
    )
    assert first == turned
    assert first != other


def test_every_mistake_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [row("a"), row("b", " "), "{torn", row("a"), {"id": "c"}])
    with pytest.raises(ConfigError) as caught:
        load_suite("tiny_test", path, expected_n=5)
    text = str(caught.value)
    for part in (
        "bad.jsonl:2: label = ' '",
        "bad.jsonl:3: is not a JSON object",
        "'a' occurs more",
        ":5: level = None",
    ):
        assert part in text


def test_shrunk_suite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds 1 items, expected 2"):
        load_suite("tiny_test", write(tmp_path / "a.jsonl", [row("a")]), expected_n=2)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; prepare the task"):
        load_suite("tiny_test", tmp_path / "none.jsonl", expected_n=1)


def test_unknown_suite_suggests_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny_test'"):
        suite_source("tiny_tset")


def test_names_and_groups() -> None:
    assert suite_names("math6") == GROUPS["math6"] == tuple(name for name in SUITES if name != "gsm8k")
    assert suite_names("tiny_test") == ("tiny_test",)
    assert suite_names("gsm8k") == ("gsm8k",)
    assert [is_task_suite(name) for name in ("tiny_test", "aime24")] == [True, False]
    assert [suite_grader(name) for name in ("tiny_validation", "aime24")] == ["integer", "math"]
    with pytest.raises(ConfigError, match=r"known: math6, .*gsm8k, tiny_test, tiny_validation"):
        suite_names("nothing")


def test_a_group_is_not_one_suite_and_a_split_needs_its_task() -> None:
    with pytest.raises(ConfigError, match="math6: stands for aime24, aime25"):
        open_suite("math6")
    with pytest.raises(ConfigError, match="it needs a run of that task"):
        open_suite("tiny_test")


def test_a_users_suite(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("suites: {mine: {file: q.jsonl, expected_n: 2, id: n, question: plain}}")
    write(tmp_path / "q.jsonl", [{"problem": f"{n}+1?", "answer": n + 1, "n": n} for n in range(2)])
    (name,) = suite_names(str(tmp_path / "mine.yaml"))
    suite = open_suite(name)
    assert suite.name == "mine"
    assert [(item.id, item.prompt, item.gold) for item in suite.items] == [
        ("mine/0", "0+1?", "1"),
        ("mine/1", "1+1?", "2"),
    ]
    assert suite.template == "{problem}"
    assert suite.revision.startswith("file q.jsonl sha256 ")
    boxed = open_suite(name, question="boxed")
    assert boxed.items[0].prompt == r"0+1? Let's think step by step and output the final answer within \boxed{}."
    assert boxed.content_hash != suite.content_hash, "another prompt is another protocol"


@real
def test_the_six_suites_on_their_real_files() -> None:
    suites = [open_suite(name, data_dir=REAL) for name in suite_names("math6")]
    assert [len(suite.items) for suite in suites] == [30, 30, 40, 500, 272, 675]
    for suite in suites:
        assert suite.revision.endswith(f":datasets/{suite.name}.parquet")
        assert all(item.prompt.endswith(r"output the final answer within \boxed{}.") for item in suite.items)
        assert all(item.id.startswith(f"{suite.name}/") for item in suite.items)
    first = open_suite("aime24", data_dir=REAL, question="file").items[0]
    assert first.prompt.endswith('Remember to put your answer on its own line after "Answer:".')
    assert open_suite("aime24", data_dir=REAL, question="dapo").items[0].prompt == first.prompt
    assert (first.id, first.gold) == (suites[0].items[0].id, "540")
