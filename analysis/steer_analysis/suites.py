"""Evaluation suites: fixed lists of items, loaded whole or not at all."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer_experiments.tasks import PreparedTask
from steer_openrlhf.errors import ConfigError, suggest

_SHOWN = 8  # mistakes named one by one before the rest is only counted


@dataclass(frozen=True)
class SuiteSource:
    """Where a suite's items come from: one split of one task."""

    task: str
    split: Literal["validation", "test"]


SUITES: dict[str, SuiteSource] = {
    "tiny_test": SuiteSource("tiny_arithmetic", "test"),
    "tiny_validation": SuiteSource("tiny_arithmetic", "validation"),
}


@dataclass(frozen=True)
class Item:
    """One question. ``prompt`` is raw text, before any chat template."""

    id: str
    level: str
    prompt: str
    gold: str


@dataclass(frozen=True)
class Suite:
    """Named items with the hash of everything that is asked and everything that is expected."""

    name: str
    items: tuple[Item, ...]
    content_hash: str


def suite_source(name: str) -> SuiteSource:
    """The source of suite ``name``; ``ConfigError`` lists the known suites."""
    if name not in SUITES:
        hint = suggest(name, SUITES)
        raise ConfigError([f"suite {name!r} is unknown; known: {', '.join(SUITES)}" + (f"; {hint}" if hint else "")])
    return SUITES[name]


def suite_of_task(name: str, task: PreparedTask) -> Suite:
    """Suite ``name`` from the prepared files of its task."""
    split = suite_source(name).split
    path: Path = getattr(task, split)
    return load_suite(name, path, task.expected_n[split], task.input_key, task.label_key)


def load_suite(name: str, path: Path, expected_n: int, input_key: str = "input", label_key: str = "label") -> Suite:
    """Read a suite from a jsonl file with ``id``, ``level``, the prompt and the gold answer in every row.

    Raises:
        ConfigError: every mistake of the file at once: damaged lines, missing or empty fields, repeated ids, wrong n.
    """
    items: list[Item] = []
    mistakes: list[str] = []
    for number, row in _rows(path):
        item, wrong = _item(row, input_key, label_key)
        mistakes += [f"{path}:{number}: {sentence}" for sentence in wrong]
        items += [item] if item else []
    repeated = [item_id for item_id, count in Counter(item.id for item in items).items() if count > 1]
    mistakes += [f"{path}: id {item_id!r} occurs more than once; ids must be unique" for item_id in repeated]
    if not mistakes and len(items) != expected_n:
        mistakes.append(f"{path}: holds {len(items)} items, expected {expected_n}: prepare the task again")
    if mistakes:
        rest = len(mistakes) - _SHOWN
        raise ConfigError(mistakes[:_SHOWN] + ([f"and {rest} more in {path}"] if rest > 0 else []))
    return Suite(name, tuple(items), _content_hash(items))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line; a line that is not JSON gives None."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; prepare the task first"]) from None
    for number, line in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError:
            yield number, None


def _item(row: Any, input_key: str, label_key: str) -> tuple[Item | None, list[str]]:
    """The item of a row, or the sentences that say why it is none."""
    if not isinstance(row, dict):
        return None, ["is not a JSON object"]
    wrong = []
    for key in ("id", "level", input_key, label_key):
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            wrong.append(f"{key} = {value!r}: must be text that is not empty")
    return (None, wrong) if wrong else (Item(row["id"], row["level"], row[input_key], row[label_key]), [])


def _content_hash(items: list[Item]) -> str:
    """SHA-256 over ids, levels, prompts and golds, hex; independent of the order of the file."""
    rows = sorted([item.id, item.level, item.prompt, item.gold] for item in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
