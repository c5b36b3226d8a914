"""``steer train --dry-run``: the training's exact command, with nothing prepared, written or started."""

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from .cache import cache_root
from .config import Experiment, ModelPath, Prepared
from .environment import added_variables
from .models import model_folder
from .tasks import PreparedTask, prepare_task
from .train import child_command


def describe(experiment: Experiment, run_dir: Path) -> str:
    """One shell line: the variables the run adds to the environment, then the command. Ray's temporary directory, which
    is a new one in every run, is left to Ray."""
    prepared = planned(experiment, cache_root())
    command = child_command(experiment, prepared, run_dir, temp_dir=None)
    local = not isinstance(experiment.model, ModelPath) or Path(prepared.model).is_dir()
    variables = added_variables(run_dir, experiment.env, local)
    return shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *command])


def planned(experiment: Experiment, cache: Path) -> Prepared:
    """Where the run will find its task and model. The task is generated in a scratch folder, because the model's place
    depends on its content."""
    with tempfile.TemporaryDirectory() as scratch:
        task = _moved(prepare_task(experiment.task, Path(scratch)), Path(scratch), cache)
    if isinstance(experiment.model, ModelPath):
        return Prepared(task, experiment.model.path)
    return Prepared(task, str(model_folder(experiment.model, task, cache)))


def _moved(task: PreparedTask, old: Path, new: Path) -> PreparedTask:
    paths = {split: new / getattr(task, split).relative_to(old) for split in ("train", "validation", "test")}
    return replace(task, **paths)
