"""Go on from an OpenRLHF checkpoint: which one, and what of an earlier attempt stays.

OpenRLHF saves a step's checkpoint after its metrics and before its evaluation, and does not evaluate that step again.
So a checkpoint is of use only when the metrics have everything up to it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checks import ACTIVE, EVAL_SAMPLES
from .config import Experiment
from .recipes import flatten
from .run_dir import RunDir, write_text

ACTOR, CRITIC = "_actor", "_critic"
_TAG = re.compile(r"(?:best_)?global_step(\d+)")


def resume_from(experiment: Experiment, run: RunDir) -> int | None:
    """Prepare the run directory to continue, and the step its training then starts after; None: from the beginning.

    The checkpoint folder is left pointing to that step's checkpoint, and the metrics end with it. Raises ``ValueError``
    for damaged metrics.
    """
    rows = run.read_metrics()
    flags = flatten(experiment.openrlhf)
    folders = [folder for name in (ACTOR, CRITIC) if (folder := run.path / "ckpt" / name).is_dir()]
    if not folders or folders[0].name != ACTOR:
        return None
    found = [_checkpoints(folder) for folder in folders]
    common = set.intersection(*(set(one) for one in found))
    usable = [step for step in common if _complete(rows, step, flags)]
    if not usable:
        return None
    step = max(usable)
    for folder, tags in zip(folders, found, strict=True):
        write_text(folder / "latest", tags[step])
    again = bool(flags.get("train.async_enable"))  # that trainer evaluates the step it starts from
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and not (again and EVAL_SAMPLES in row))]
    write_text(run.metrics, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))
    return step


def _checkpoints(folder: Path) -> dict[int, str]:
    """Step -> name of the complete checkpoints: DeepSpeed names one in ``latest`` when all of it is written."""
    latest = folder / "latest"
    newest = _TAG.fullmatch(latest.read_text().strip()) if latest.is_file() else None
    if newest is None:
        return {}
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), reverse=True)  # plain ones win
    steps = {int(match[1]): name for name in reversed(names) if (match := _TAG.fullmatch(name))}
    return {step: name for step, name in steps.items() if step <= int(newest[1])}


def _complete(rows: Sequence[Mapping[str, Any]], step: int, flags: Mapping[str, Any]) -> bool:
    """Whether the metrics have the training and the evaluation of every step up to this one."""
    every, logged = int(flags.get("eval.steps", -1)), int(flags.get("logger.logging_steps", 1))
    last = step // logged * logged
    trained = last == 0 or any(row["step"] == last and ACTIVE in row for row in rows)
    due = every > 0 and step % every == 0 and not flags.get("train.async_enable")
    return trained and (not due or any(row["step"] == step and EVAL_SAMPLES in row for row in rows))
