"""The models a run can start from beside a folder or a hub id: one dict literal of builders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steer_experiments import base_model
from steer_experiments.cache import folder_of
from steer_experiments.tasks.prepared import PreparedTask


@dataclass(frozen=True)
class Model:
    """A builder: its typed config, what its result depends on, and the function that builds the Hugging Face folder."""

    config: type[BaseModel]
    identity: Callable[[Any, PreparedTask], dict[str, Any]]
    build: Callable[[Any, PreparedTask, Path], Path]


MODELS: dict[str, Model] = {
    base_model.NAME: Model(base_model.TinyQwen2Config, base_model.identity, base_model.build),
}


def prepare_model(config: BaseModel, task: PreparedTask, cache: Path) -> Path:
    """The folder of the model that `config` describes, built now or found in the cache."""
    return _builder(config)[1].build(config, task, cache)


def model_folder(config: BaseModel, task: PreparedTask, cache: Path) -> Path:
    """Where :func:`prepare_model` has, or will have, the model. Builds nothing."""
    name, model = _builder(config)
    return folder_of(cache, name, model.identity(config, task))


def _builder(config: BaseModel) -> tuple[str, Model]:
    for name, model in MODELS.items():
        if type(config) is model.config:
            return name, model
    raise ValueError(f"{type(config).__name__} is no model config; known builders: {', '.join(sorted(MODELS))}")
