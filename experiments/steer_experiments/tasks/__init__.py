"""The tasks a run can train on: one dict literal, and what a prepared task looks like on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steer_experiments.tasks import math, tiny_arithmetic
from steer_experiments.tasks.prepared import PreparedTask

__all__ = ["TASKS", "PreparedTask", "Task", "prepare_task", "task_config_type"]


@dataclass(frozen=True)
class Task:
    """A task's typed config and the function that writes its data files into a cache."""

    config: type[BaseModel]
    prepare: Callable[[Any, Path], PreparedTask]


TASKS: dict[str, Task] = {
    tiny_arithmetic.NAME: Task(tiny_arithmetic.TinyArithmeticConfig, tiny_arithmetic.prepare),
    math.NAME: Task(math.MathConfig, math.prepare),
}


def task_config_type(name: str) -> type[BaseModel]:
    """The config class of task `name`; ValueError lists the known tasks."""
    if name not in TASKS:
        raise ValueError(f"task.name is {name!r}; known tasks: {', '.join(sorted(TASKS))}")
    return TASKS[name].config


def prepare_task(config: BaseModel, cache: Path) -> PreparedTask:
    """Write (or find) the data files of the task that `config` describes."""
    for task in TASKS.values():
        if type(config) is task.config:
            return task.prepare(config, cache)
    raise ValueError(f"{type(config).__name__} is no task config; known tasks: {', '.join(sorted(TASKS))}")
