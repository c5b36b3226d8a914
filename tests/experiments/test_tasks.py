"""The tiny task: items, splits, files, and the cache they live in."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from steer_experiments.cache import MANIFEST, cached_folder, content_key, folder_hash, folder_of
from steer_experiments.tasks import TASKS, prepare_task
from steer_experiments.tasks.tiny_arithmetic import Level, TinyArithmeticConfig, normalise, splits, teaching_questions

SMALL = TinyArithmeticConfig(train_size=40, validation_size=12, test_size=10)


def calculate(question: str) -> int:
    """Left to right, one operator after the other: an independent reading of "12+7-3="."""
    value, operator, digits = 0, "+", ""
    for character in question:
        if character.isdigit():
            digits += character
            continue
        value = {"+": value + int(digits), "-": value - int(digits), "*": value * int(digits)}[operator]
        operator, digits = character, ""
    return value


def test_every_label_is_the_value_of_its_question() -> None:
    rows = [row for split in splits(SMALL).values() for row in split]
    assert len(rows) == 62
    assert [row["label"] for row in rows] == [str(calculate(row["input"])) for row in rows]


def test_default_sizes_feed_24_steps_of_64_prompts_and_splits_share_no_question(tmp_path: Path) -> None:
    task = prepare_task(TinyArithmeticConfig(), tmp_path)
    assert task.expected_n == {"train": 2048, "validation": 128, "test": 200}
    questions = {split: [normalise(row["input"]) for row in task.rows(split)] for split in task.expected_n}
    everything = [question for split in questions.values() for question in split]
    assert len(everything) == len(set(everything)) == 2048 + 128 + 200


def test_rows_have_the_shape_openrlhf_reads(tmp_path: Path) -> None:
    task = prepare_task(SMALL, tmp_path)
    for split in ("train", "validation", "test"):
        rows = task.rows(split)
        assert len({row["id"] for row in rows}) == len(rows) == task.expected_n[split]
        for row in rows:
            assert set(row) == {"input", "label", "datasource", "id", "level"}
            assert row["datasource"] == f"tiny_{split}"
            assert set(row[task.input_key]) <= set("0123456789+-*=")
            assert row[task.input_key].endswith("=")
            assert str(int(row[task.label_key])) == row["label"]
    assert task.reward_func.name == "reward_tiny.py"
    assert task.reward_func.is_file()


def test_levels_take_turns_so_any_stretch_holds_all_of_them(tmp_path: Path) -> None:
    levels = [row["level"] for row in prepare_task(SMALL, tmp_path).rows("validation")]
    assert levels == [level.name for level in SMALL.levels] * 3


def test_same_config_same_bytes_another_seed_other_items(tmp_path: Path) -> None:
    first, second = prepare_task(SMALL, tmp_path / "a"), prepare_task(SMALL, tmp_path / "b")
    other = prepare_task(SMALL.model_copy(update={"seed": 1}), tmp_path / "a")
    assert first.content_hash == second.content_hash == folder_hash(first.train.parent)
    assert first.content_hash != other.content_hash


def test_a_larger_train_split_leaves_validation_and_test_alone() -> None:
    small, large = splits(SMALL), splits(SMALL.model_copy(update={"train_size": 80}))
    assert small["validation"] == large["validation"]
    assert small["test"] == large["test"]
    assert len(large["train"]) == 80


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), sizes=st.tuples(*[st.integers(1, 30)] * 3))
def test_splits_are_disjoint_for_any_seed_and_sizes(seed: int, sizes: tuple[int, int, int]) -> None:
    config = TinyArithmeticConfig(train_size=sizes[0], validation_size=sizes[1], test_size=sizes[2], seed=seed)
    rows = splits(config)
    assert {split: len(found) for split, found in rows.items()} == {s: config.size(s) for s in rows}
    questions = [normalise(row["input"]) for found in rows.values() for row in found]
    assert len(set(questions)) == len(questions)


def test_teaching_never_sees_validation_or_test() -> None:
    level = Level(name="few", dataset="products", terms=3, digits=1)  # 1000 questions: a leak would show at once
    config = TinyArithmeticConfig(levels=(level,), train_size=300, validation_size=200, test_size=200)
    rows = splits(config)
    taught = {question for question, _ in teaching_questions(config, 3000)}
    held_out = {row["input"] for split in ("validation", "test") for row in rows[split]}
    assert len(held_out) == 400
    assert taught.isdisjoint(held_out)
    assert taught & {row["input"] for row in rows["train"]}


def test_a_level_with_too_few_questions_says_so() -> None:
    level = Level(name="tables", dataset="products", terms=2, digits=1)  # 100 different questions
    config = TinyArithmeticConfig(levels=(level,), train_size=90, validation_size=10, test_size=10)
    with pytest.raises(ValueError, match=r"level tables has too few different questions: 80 of the 90 for train"):
        splits(config)


def test_levels_that_overlap_are_refused() -> None:
    twins = tuple(Level(name=name, dataset="products", terms=2, digits=1) for name in ("one", "two"))
    config = TinyArithmeticConfig(levels=twins, train_size=60, validation_size=60, test_size=40)
    with pytest.raises(ValueError, match="two levels overlap"):
        splits(config)


def test_bad_config_is_refused_with_all_mistakes() -> None:
    with pytest.raises(ValidationError) as caught:
        TinyArithmeticConfig.model_validate({"train_size": 0, "validation_sise": 3, "levels": []})
    assert {error["loc"][0] for error in caught.value.errors()} == {"train_size", "validation_sise", "levels"}


def test_the_registry_refuses_a_config_of_no_task(tmp_path: Path) -> None:
    assert set(TASKS) == {"math", "tiny_arithmetic"}
    with pytest.raises(ValueError, match=r"Level is no task config; known tasks: math, tiny_arithmetic"):
        prepare_task(SMALL.levels[0], tmp_path)


def test_a_file_with_a_missing_row_is_an_error_and_the_cache_heals_it(tmp_path: Path) -> None:
    task = prepare_task(SMALL, tmp_path)
    whole = task.test.read_text()
    task.test.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="holds 9 items, expected 10"):
        task.rows("test")
    assert prepare_task(SMALL, tmp_path).test.read_text() == whole


# --- cache ---------------------------------------------------------------------------------------------------------


def write_hello(folder: Path) -> None:
    (folder / "a.txt").write_text("hello")


def test_the_cache_builds_once_and_again_after_damage(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        write_hello(folder)

    first = cached_folder(tmp_path, "thing", {"x": 1}, build)
    assert first == cached_folder(tmp_path, "thing", {"x": 1}, build) == folder_of(tmp_path, "thing", {"x": 1})
    assert len(calls) == 1
    (first / "a.txt").write_text("hellO")
    assert (cached_folder(tmp_path, "thing", {"x": 1}, build) / "a.txt").read_text() == "hello"
    (first / MANIFEST).write_text("{torn")
    cached_folder(tmp_path, "thing", {"x": 1}, build)
    assert len(calls) == 3


def test_keys_do_not_depend_on_the_order_of_fields() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 2, "b": 1})


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        write_hello(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached_folder(tmp_path, "thing", 1, build)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def half_build(root: Path) -> None:
    """Runs in a process that is killed in the middle of building."""

    def build(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        (root / "started").write_text("")
        time.sleep(600)

    cached_folder(root, "thing", 1, build)


def test_a_builder_killed_in_the_middle_leaves_no_half_folder_and_no_lock(tmp_path: Path) -> None:
    builder = multiprocessing.get_context("fork").Process(target=half_build, args=(tmp_path,))
    builder.start()
    while not (tmp_path / "started").exists():
        assert builder.is_alive()
        time.sleep(0.01)
    os.kill(builder.pid or 0, signal.SIGKILL)
    builder.join()
    assert not folder_of(tmp_path, "thing", 1).exists()
    folder = cached_folder(tmp_path, "thing", 1, write_hello)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", MANIFEST]


def count_build(root: Path) -> None:
    """Runs in several processes at once; every build leaves a mark outside the folder."""

    def build(folder: Path) -> None:
        (root / f"built-by-{os.getpid()}").write_text("")
        time.sleep(0.2)
        write_hello(folder)

    cached_folder(root, "thing", 1, build)


def test_two_builders_do_not_race(tmp_path: Path) -> None:
    builders = [multiprocessing.get_context("fork").Process(target=count_build, args=(tmp_path,)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0] * 4
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    manifest = json.loads((folder_of(tmp_path, "thing", 1) / MANIFEST).read_text())
    assert manifest["sha256"] == folder_hash(folder_of(tmp_path, "thing", 1))
