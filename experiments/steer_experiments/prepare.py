"""Build (or find) the task and the model of an experiment. Run as a process of its own, because building a model loads
torch and the supervisor of a run stays light: ``python -m steer_experiments.prepare CONFIG OUTPUT``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cache import cache_root
from .config import Experiment, ModelPath, Prepared, load_recipe
from .models import prepare_model
from .run_dir import read_json, write_json
from .tasks import PreparedTask, prepare_task

_PATHS = ("train", "validation", "test", "reward_func")


def prepare(experiment: Experiment, cache: Path) -> Prepared:
    """The experiment's task and model on disk, built now where the cache has none."""
    task = prepare_task(experiment.task, cache)
    if isinstance(experiment.model, ModelPath):
        return Prepared(task, experiment.model.path)
    return Prepared(task, str(prepare_model(experiment.model, task, cache)))


def to_json(prepared: Prepared) -> dict[str, Any]:
    """What ``prepared.json`` of a run holds: the files, the number of items of each split, the content hash."""
    task = prepared.task
    paths = {name: str(getattr(task, name)) for name in _PATHS}
    keys = {"input_key": task.input_key, "label_key": task.label_key}
    sizes = {"expected_n": dict(task.expected_n), "content_hash": task.content_hash}
    return {"model": prepared.model, "task": paths | keys | sizes}


def read_prepared(path: Path, experiment: Experiment) -> Prepared:
    """The counterpart of :func:`to_json`. Raises ``ValueError`` for a missing or damaged file."""
    found = read_json(path)
    if found is None:
        raise ValueError(f"{path}: was not written, so the task and the model were not prepared")
    task = found["task"] | {name: Path(found["task"][name]) for name in _PATHS}
    return Prepared(PreparedTask(**task, config=experiment.task), found["model"])


def main(argv: Sequence[str]) -> int:
    """``CONFIG OUTPUT``: prepare the experiment of a recipe and write ``prepared.json`` to OUTPUT."""
    config, output = argv
    write_json(Path(output), to_json(prepare(load_recipe(config), cache_root())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
