"""The tiny task: short arithmetic from the `reasoning-gym` package, in levels of growing difficulty.

Each level is one endless stream of items with an explicit seed; the splits are consecutive stretches of it, so they are
disjoint by construction, and enlarging `train_size` leaves validation and test as they were. What follows the train
stretch is free for teaching the base model (`teaching_questions`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steer_experiments.cache import cached_folder, folder_hash
from steer_experiments.tasks.prepared import PreparedTask

NAME: Literal["tiny_arithmetic"] = "tiny_arithmetic"
VERSION = 1  # raise it when the same config would give other items
SPLITS = ("test", "validation", "train")  # the order in which stretches are cut from a stream
_SEED_STRIDE = 100_000_000  # reasoning-gym draws item i of a dataset from seed + i: keep the levels' streams apart
_MAX_REPEATS = 2_000  # this many repeats in a row: the level has no new questions left


class Level(BaseModel):
    """One difficulty: a reasoning-gym dataset with a fixed number of terms and digits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    dataset: Literal["chain_sum", "products"]
    terms: int = Field(ge=2, le=6)
    digits: int = Field(ge=1, le=3)


DEFAULT_LEVELS = (
    Level(name="sum_3x1", dataset="chain_sum", terms=3, digits=1),
    Level(name="sum_4x1", dataset="chain_sum", terms=4, digits=1),
    Level(name="sum_5x1", dataset="chain_sum", terms=5, digits=1),
    Level(name="product_3x1", dataset="products", terms=3, digits=1),
)


class TinyArithmeticConfig(BaseModel):
    """Sizes are items over all levels; levels take turns, so they differ by at most one item per split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["tiny_arithmetic"] = NAME
    levels: tuple[Level, ...] = Field(default=DEFAULT_LEVELS, min_length=1)
    train_size: int = Field(default=2048, ge=1, le=200_000)
    validation_size: int = Field(default=128, ge=1, le=20_000)
    test_size: int = Field(default=200, ge=1, le=20_000)
    seed: int = Field(default=20251010, ge=0, le=2**31)

    @model_validator(mode="after")
    def _level_names_differ(self) -> TinyArithmeticConfig:
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels have repeated names: {names}; give every level its own")
        return self

    def size(self, split: str) -> int:
        """Number of items of `split`, over all levels."""
        return {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]


def normalise(question: str) -> str:
    """The question without white space: what "the same question" means when splits are compared."""
    return re.sub(r"\s+", "", question)


def prepare(config: TinyArithmeticConfig, cache: Path) -> PreparedTask:
    """Write train/validation/test jsonl files into `cache`, or find them there."""
    content = {"task": config.model_dump(mode="json"), "version": VERSION}
    folder = cached_folder(cache, NAME, content, lambda empty: _write_splits(config, empty))
    return PreparedTask(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        test=folder / "test.jsonl",
        reward_func=Path(__file__).parent.parent / "reward_tiny.py",
        input_key="input",
        label_key="label",
        expected_n={split: config.size(split) for split in SPLITS},
        content_hash=folder_hash(folder),
        config=config,
    )


def splits(config: TinyArithmeticConfig) -> dict[str, list[dict[str, str]]]:
    """All rows of all splits; ValueError when a level has too few different questions."""
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for index, level in enumerate(config.levels):
        stream = _unique_items(config, index)
        for split in SPLITS:
            wanted = _share(config.size(split), index, len(config.levels))
            taken = [_row(split, level, n, item) for n, item in enumerate(islice(stream, wanted))]
            if len(taken) < wanted:
                raise ValueError(
                    f"level {level.name} has too few different questions: {len(taken)} of the {wanted} for {split}; "
                    "give it more terms or digits, or ask for fewer items"
                )
            rows[split] += taken
    _assert_disjoint(rows)
    return {split: _take_turns(rows[split]) for split in SPLITS}


def teaching_questions(config: TinyArithmeticConfig, n: int) -> list[tuple[str, str]]:
    """`n` (question, level name) pairs of the train distribution, levels in turns, none from validation or test.

    Questions may repeat, and may be in train: a level with few questions has nothing else to teach with.
    """
    rows = splits(config)
    held_out = {normalise(row["input"]) for split in ("validation", "test") for row in rows[split]}
    pairs: list[tuple[str, str]] = []
    for index, level in enumerate(config.levels):
        stream = (item[0] for item in _items(config, index))
        fresh = (question for question in stream if question not in held_out)
        pairs += [(question, level.name) for question in islice(fresh, _share(n, index, len(config.levels)))]
    assert not held_out & {question for question, _ in pairs}
    return pairs


def _items(config: TinyArithmeticConfig, index: int) -> Iterator[tuple[str, str]]:
    """The endless (question, answer) stream of level number `index`; a question looks like "12+7-3="."""
    import reasoning_gym  # here: it takes seconds to import, and a cached task does not need it

    level = config.levels[index]
    shape = {"min_terms": level.terms, "max_terms": level.terms, "min_digits": level.digits, "max_digits": level.digits}
    seed = config.seed + index * _SEED_STRIDE
    dataset = reasoning_gym.create_dataset(level.dataset, seed=seed, size=_SEED_STRIDE, **shape)
    for number in range(_SEED_STRIDE):
        item: dict[str, Any] = dataset[number]
        yield normalise(item["metadata"]["expression"]) + "=", str(item["answer"])


def _unique_items(config: TinyArithmeticConfig, index: int) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    repeats = 0
    for question, answer in _items(config, index):
        repeats = repeats + 1 if question in seen else 0
        if repeats > _MAX_REPEATS:
            return
        if not repeats:
            seen.add(question)
            yield question, answer


def _row(split: str, level: Level, number: int, item: tuple[str, str]) -> dict[str, str]:
    datasource = f"tiny_{split}"
    identity = f"{datasource}/{level.name}/{number:05d}"
    return {"input": item[0], "label": item[1], "datasource": datasource, "id": identity, "level": level.name}


def _share(total: int, index: int, parts: int) -> int:
    return total // parts + (index < total % parts)


def _take_turns(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows ordered by number within the level, so every stretch of a file holds all levels alike."""
    return sorted(rows, key=lambda row: int(row["id"].rsplit("/", 1)[1]))


def _assert_disjoint(rows: dict[str, list[dict[str, str]]]) -> None:
    questions = [normalise(row["input"]) for split in SPLITS for row in rows[split]]
    if len(set(questions)) != len(questions):
        raise ValueError(
            f"the splits share {len(questions) - len(set(questions))} questions: two levels overlap; "
            "give levels different terms, digits or datasets"
        )


def _write_splits(config: TinyArithmeticConfig, folder: Path) -> None:
    for split, rows in splits(config).items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
