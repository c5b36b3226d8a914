"""Rows of a file or a hub data set, one at a time, and what they ask. Files may be larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_openrlhf.errors import ConfigError

from steer_experiments.data.questions import bare

Row = Mapping[str, Any]
SUFFIXES = (".parquet", ".jsonl")
_BATCH = 2048  # rows of a parquet file in memory at once
_GSM8K_MARK = "####"


@dataclass(frozen=True)
class Columns:
    """Which column holds what. ``gold_mark``: the answer is what follows this text, as in GSM8K."""

    problem: str = "problem"
    gold: str = "answer"
    id: str | None = None
    level: str | None = None
    gold_mark: str | None = None


PLAIN = Columns()
GSM8K = Columns("question", "answer", gold_mark=_GSM8K_MARK)


@dataclass(frozen=True)
class Asked:
    """What one row asks. ``template``: what was recognised around the problem."""

    prompt: str
    problem: str
    template: str
    gold: str
    id: str | None = None
    level: str | None = None


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) of a parquet or jsonl file.

    Raises:
        ConfigError: no such file, another kind of file, or a damaged one; names file and line.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError([f"{path}: is no data file; give one that ends in {' or '.join(SUFFIXES)}"])
    if not path.is_file():
        raise ConfigError([f"{path}: no such file"])
    yield from enumerate(_parquet(path) if path.suffix == ".parquet" else _jsonl(path), start=1)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError([f"{path}: not a whole parquet file: {' '.join(str(error).split())}"]) from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError([f"{path}:{number}: is not JSON: {error}"]) from None
            if not isinstance(row, dict):
                raise ConfigError([f"{path}:{number}: is not a JSON object"])
            yield row


def asked(row: Row, columns: Columns) -> tuple[Asked | None, list[str]]:
    """What a row asks, or why it asks nothing. The layouts of verl and of our own prompt files are recognised."""
    if isinstance(row.get("reward_model"), Mapping) and isinstance(row.get("prompt"), list):
        return _verl(row)
    if "input" in row and "label" in row and columns.problem not in row:
        columns = Columns("input", "label", "id", "level")
    mistakes = [f"has no column {name}" for name in (columns.problem, columns.gold) if name not in row]
    if mistakes:
        return None, [f"{one}; it has {', '.join(map(str, row))}" for one in mistakes]
    gold, wrong = _gold(row[columns.gold], columns)
    text = row[columns.problem]
    if not isinstance(text, str) or not text.strip():
        wrong.append(f"{columns.problem} = {text!r}: must be text that is not empty")
    if wrong:
        return None, wrong
    problem, template = bare(text)
    return Asked(text, problem, template, gold, _text(row, columns.id), _text(row, columns.level)), []


def _verl(row: Row) -> tuple[Asked | None, list[str]]:
    """``prompt``: one user message; ``reward_model.ground_truth``: the answer. Other keys are not read: in the released
    AIME 2025 file ``extra_info.raw_problem`` is cut in the middle of the instruction."""
    messages, wrong = row["prompt"], []
    whole = all(isinstance(one, Mapping) and isinstance(one.get("content"), str) for one in messages)
    if not whole or len(messages) != 1 or messages[0].get("role") != "user" or not messages[0]["content"].strip():
        wrong.append("prompt: must be one user message with text")
    gold, empty = _gold(row["reward_model"].get("ground_truth"), Columns(gold="reward_model.ground_truth"))
    wrong += empty
    if wrong:
        return None, wrong
    prompt = messages[0]["content"]
    problem, template = bare(prompt)
    return (Asked(prompt, problem, template, gold), []) if problem else (None, ["prompt: holds no problem"])


def _gold(value: Any, columns: Columns) -> tuple[str, list[str]]:
    """A gold as text. A list of one is that one, a longer list its parts with commas; numbers are written out."""
    if isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, str) and columns.gold_mark:
        _, mark, value = value.rpartition(columns.gold_mark)
        if not mark:
            return "", [f"{columns.gold}: has no {columns.gold_mark!r} before the answer"]
        value = re.sub(r"(?<=\d),(?=\d{3})", "", value)
    if not isinstance(value, str) or not value.strip():
        return "", [f"{columns.gold} = {value!r}: the gold answer is empty"]
    return value.strip(), []


def _text(row: Row, column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value is None or not str(value).strip() else str(value).strip()
