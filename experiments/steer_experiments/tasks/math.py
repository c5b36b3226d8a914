"""Mathematics from a prepared prompt file (``steer data prepare``): trained on, and a held-out part of it to watch.

The validation items are cut out of the training file, so that no evaluation suite ever chooses a checkpoint or prunes a
trial. Questions that differ in spacing alone stay on one side. The evaluation suites are no part of the task: they are
opened by name (:mod:`steer_analysis.suites`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from steer_openrlhf.errors import ConfigError

from steer_experiments.cache import cached_folder, file_digest, folder_hash
from steer_experiments.data.catalogue import data_root
from steer_experiments.data.questions import bare, same_key
from steer_experiments.tasks.prepared import PreparedTask

NAME: Literal["math"] = "math"
VERSION = 1  # raise it when the same config and file would give other items
PROMPTS, MANIFEST = "train.jsonl", "manifest.json"  # as steer data prepare writes them
SPLITS = ("train", "validation", "test")
Row = dict[str, str]


class MathConfig(BaseModel):
    """``data``: a prepared set by name (in $STEER_DATA, else ``data``), or its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["math"] = NAME
    data: str = "dapo-math-17k"
    validation_size: int = Field(default=128, ge=1, le=20_000)

    @property
    def folder(self) -> Path:
        """Where the prepared files are."""
        return Path(self.data).expanduser() if "/" in self.data else data_root() / self.data


def prepare(config: MathConfig, cache: Path) -> PreparedTask:
    """Write train and validation jsonl files into ``cache``, or find them there. There is no test split.

    Raises:
        ConfigError: the set was not prepared, was changed since, or is too small to hold items out.
    """
    source = config.folder / PROMPTS
    digest = _checked(config, source)
    content = {"file_sha256": digest, "validation_size": config.validation_size, "version": VERSION}
    folder = cached_folder(cache, NAME, content, lambda empty: _write(config, source, empty))
    return PreparedTask(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        test=folder / "test.jsonl",
        reward_func=Path(__file__).parent.parent / "reward_math.py",
        input_key="input",
        label_key="label",
        expected_n={split: _lines(folder / f"{split}.jsonl") for split in SPLITS},
        content_hash=folder_hash(folder),
        config=config,
    )


def split(rows: list[Row], validation_size: int) -> dict[str, list[Row]]:
    """Rows by split. Which questions are held out follows from their text alone, not from the order of the file; a
    question's repetitions are left out of the training with it."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(_key(row), row)
    if len(first) <= validation_size:
        raise ConfigError(
            [f"task.validation_size = {validation_size}: the set has {len(first)} different questions; hold fewer out"]
        )
    held_out = set(sorted(first, key=lambda key: hashlib.sha256(key.encode()).digest())[:validation_size])
    return {
        "train": [_named(row, "train") for row in rows if _key(row) not in held_out],
        "validation": [_named(row, "validation") for key, row in first.items() if key in held_out],
        "test": [],
    }


def _key(row: Row) -> str:
    return same_key(bare(row["input"])[0])


def _named(row: Row, split_: str) -> Row:
    return row | {"datasource": f"{NAME}_{split_}"}


def _checked(config: MathConfig, path: Path) -> str:
    """The digest of the prepared file, compared with the one its manifest has."""
    try:
        manifest = json.loads((config.folder / MANIFEST).read_text(encoding="utf-8"))
        digest = file_digest(path)
    except (OSError, json.JSONDecodeError):
        raise ConfigError(
            [
                f"task.data = {config.data!r}: {config.folder} holds no prepared prompt file; run "
                f"steer data prepare {config.data} (experiments/DATA.md), or give the folder of another"
            ]
        ) from None
    if digest != manifest.get("file_sha256"):
        raise ConfigError([f"{path}: was changed since it was prepared; prepare it again"])
    return digest


def _write(config: MathConfig, source: Path, folder: Path) -> None:
    with source.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for name, chosen in split(rows, config.validation_size).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
