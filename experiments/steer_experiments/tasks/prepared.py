"""What every task hands to a run: files on disk, and how to read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel


@dataclass(frozen=True)
class PreparedTask:
    """Data files of a task. Each jsonl row: {"input", "label", "datasource", "id", "level"}, all strings."""

    train: Path
    validation: Path
    test: Path
    reward_func: Path
    input_key: str
    label_key: str
    expected_n: Mapping[str, int]
    content_hash: str
    config: BaseModel

    def rows(self, split: str) -> list[dict[str, str]]:
        """All rows of `split`; ValueError when the file does not hold the expected number."""
        path: Path = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if len(rows) != self.expected_n[split]:
            raise ValueError(f"{path} holds {len(rows)} items, expected {self.expected_n[split]}: delete its folder")
        return rows
