"""Evaluation suites: fixed lists of items, loaded whole or not at all.

Two kinds: splits of a training task (:data:`SUITES`, the run's own files), and benchmarks and user files
(:mod:`steer_experiments.data`), which are the same for every run.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer_experiments.data.catalogue import data_root, expand, open_source
from steer_experiments.data.load import find_file, load_suite_source
from steer_experiments.data.questions import put, template_text
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
_GRADERS = {"tiny_arithmetic": "integer"}


@dataclass(frozen=True)
class Item:
    """One question. ``prompt`` is raw text, before any chat template."""

    id: str
    level: str
    prompt: str
    gold: str


@dataclass(frozen=True)
class Suite:
    """Named items with the hash of everything that is asked and everything that is expected.

    ``revision``: which released file or commit the items are of. ``template``: the text that was put around each
    problem, ``{problem}`` where it stands; empty where the prompt is what the file has.
    """

    name: str
    items: tuple[Item, ...]
    content_hash: str
    revision: str = ""
    template: str = ""


def suite_names(name: str) -> tuple[str, ...]:
    """The suites a name stands for: itself, the members of a group (``math6``), or all of a suites file
    (``mine.yaml``, as ``mine.yaml:one``). ``ConfigError`` lists what is known."""
    return (name,) if name in SUITES else expand(name, [*SUITES])


def is_task_suite(name: str) -> bool:
    """Whether the suite is a split of a task, so that only a run of that task can be asked."""
    return name in SUITES


def suite_grader(name: str) -> str:
    """The name of the grader whose answers a suite's prompts ask for."""
    return _GRADERS[SUITES[name].task] if name in SUITES else "math"


def open_suite(
    name: str,
    task: PreparedTask | None = None,
    data_dir: Path | None = None,
    question: str | None = None,
    revision: str | None = None,
) -> Suite:
    """One suite, whole: the split of ``task``, a file in ``data_dir`` (default: $STEER_DATA, else ``data``), else the
    hub at a pinned revision.

    Args:
        question: how the problems are put (:data:`steer_experiments.data.questions.TEMPLATES`, ``file``, or a text with
            ``{problem}``); default: the suite's own, which asks for a box.
        revision: a full commit id for the hub, in place of the pinned one.

    Raises:
        ConfigError: the suite is unknown, a group, or not there; or every mistake of its file, with the items named.
    """
    if name in SUITES:
        if task is None:
            raise ConfigError([f"suite {name}: is a split of task {SUITES[name].task}; it needs a run of that task"])
        return suite_of_task(name, task)
    source, folder = open_source(name)
    path = find_file(source, folder or data_dir or data_root())
    template = question or source.template
    text = template_text(template)
    loaded = load_suite_source(source, path if revision is None else None, revision)
    items = tuple(Item(one.id, one.level, put(one, template), one.gold) for one in loaded.problems)
    return Suite(source.name, items, _content_hash(items), loaded.revision, text)


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


def _content_hash(items: Iterable[Item]) -> str:
    """SHA-256 over ids, levels, prompts and golds, hex; independent of the order of the file."""
    rows = sorted([item.id, item.level, item.prompt, item.gold] for item in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
