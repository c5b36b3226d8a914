"""A suite is loaded whole or not at all, with every mistake at once."""

import json
from pathlib import Path

import pytest
from steer_analysis.suites import load_suite, suite_source
from steer_openrlhf.errors import ConfigError


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
