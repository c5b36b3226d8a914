"""What a run must have produced before it counts as finished. Failure is a state with a reason, never a number."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import Experiment
from .recipes import flatten
from .run_dir import RunDir, read_json

ACTIVE = "train/steer/active"
EVAL_SAMPLES = "eval/eval_num_samples"
_HOST_DEFAULTS = {"rollout.batch_size": 1024, "data.max_samples": 10**8, "train.num_episodes": 1, "eval.steps": -1}
_HOST_DEFAULTS |= {"eval.n_samples_per_prompt": 4, "logger.logging_steps": 1}
"""OpenRLHF 0.11.2's own; a test compares them with its parser."""
HOST_DECIDES = frozenset(
    {"ds.attn_implementation", "ds.packing_samples", "critic.model_name_or_path", "data.input_template"}
    | {"vllm.enable_sleep", "rollout.vllm_generate_batch_size", "rollout.max_tokens_per_gpu"}
)
"""Flags whose value OpenRLHF replaces in some combinations, with a warning: another value there is its decision."""
NEVER = -1  # OpenRLHF turns it into infinity
OUT_OF_MEMORY = ("out of memory", "OutOfMemoryError", "MemoryError", "Cannot allocate memory", "std::bad_alloc", "OOM")
NO_SPACE = ("No space left on device", "OutOfDiskError", "Disk quota exceeded")


def expected_steps(experiment: Experiment, train_items: int) -> int | None:
    """Rollout steps OpenRLHF will do (a last partial batch is one too); None with dynamic filtering, which decides."""
    flags = _HOST_DEFAULTS | flatten(experiment.openrlhf)
    if flags.get("algo.dynamic_filtering_enable"):
        return None
    prompts = min(int(flags["data.max_samples"]), train_items)
    return -(-prompts // int(flags["rollout.batch_size"])) * int(flags["train.num_episodes"])


def verify_host_args(flags: Mapping[str, Any], host_args: Mapping[str, Any]) -> list[str]:
    """Every flag whose value in the training process is not the one asked for, as sentences; [] when all agree.

    ``flags``: dotted name -> value; None and absent mean "the default", which is not compared.
    ``host_args``: nested values, as the training process resolved them (``host_args.json``).
    """
    mistakes = []
    for flag, wanted in flags.items():
        if wanted is None or flag in HOST_DECIDES:
            continue
        found: Any = host_args
        for part in flag.split("."):
            found = found.get(part, _MISSING) if isinstance(found, Mapping) else _MISSING
        if found is _MISSING:
            mistakes.append(f"{flag} = {wanted!r} did not reach the training")
        elif not _same(wanted, found):
            mistakes.append(f"{flag} = {wanted!r}, but the training used {found!r}")
    return mistakes


_MISSING = object()


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(found, list | tuple) and not isinstance(wanted, list | tuple):
        return len(found) == 1 and _same(wanted, found[0])  # OpenRLHF splits some texts at commas
    if isinstance(wanted, list | tuple):
        if isinstance(found, list | tuple) and len(wanted) == 1 and len(found) == 2 and found[0] == 0:
            return _same(wanted[0], found[1])  # a threshold alone is an upper one
        same_length = isinstance(found, list | tuple) and len(found) == len(wanted)
        return same_length and all(_same(a, b) for a, b in zip(wanted, found, strict=True))
    if isinstance(wanted, bool) or isinstance(found, bool) or wanted is None or found is None:
        return wanted is found
    if isinstance(found, int | float) and isinstance(wanted, int | float | str):
        try:
            return float(wanted) == float(found) or (wanted == NEVER and found == float("inf"))
        except ValueError:
            return False
    return str(wanted) == str(found)


def missing_results(
    experiment: Experiment, run: RunDir, flags: Mapping[str, Any], items: Mapping[str, int]
) -> list[str]:
    """Why a training that ended well is not a finished run; [] when it is one. ``items``: expected n of every split."""
    rows = run.read_metrics()
    steps = expected_steps(experiment, items["train"])
    host_args = read_json(run.host_args)
    mistakes = ["host_args.json was not written"] if host_args is None else verify_host_args(flags, host_args)
    mistakes += _missing_training(experiment, rows, steps)
    mistakes += _missing_evaluations(experiment, rows, steps, items["validation"])
    return mistakes + _missing_checkpoint(run.checkpoint)


def _missing_training(experiment: Experiment, rows: Sequence[Mapping[str, Any]], steps: int | None) -> list[str]:
    trained = [row for row in rows if ACTIVE in row]
    if not trained:
        return [f"metrics.jsonl has no training step with {ACTIVE}"]
    last, mistakes = trained[-1], []
    every = int((_HOST_DEFAULTS | flatten(experiment.openrlhf))["logger.logging_steps"])
    if steps is not None and last["step"] != steps // every * every:
        mistakes.append(f"the metrics end at step {last['step']} of {steps}")
    if last[ACTIVE] != 1:
        mistakes.append(f"{ACTIVE} is {last[ACTIVE]!r} at step {last['step']}, not 1: the plugin was not in the loop")
    return mistakes


def _missing_evaluations(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]], steps: int | None, items: int
) -> list[str]:
    flags = _HOST_DEFAULTS | flatten(experiment.openrlhf)
    every, found = int(flags["eval.steps"]), [row for row in rows if EVAL_SAMPLES in row]
    if every < 1 or steps is None:
        return []
    wanted = list(range(every, steps + 1, every))
    if flags.get("train.async_enable") and steps % every == 0:
        wanted.pop()  # OpenRLHF's async trainer evaluates before it trains on a batch: never after the last
    if (at := [row["step"] for row in found]) != wanted:
        return [f"validation was measured at steps {at}, not at {wanted}"]
    n = min(items, int(flags["data.max_samples"])) * int(flags["eval.n_samples_per_prompt"])
    return [
        f"the validation at step {row['step']} has {row[EVAL_SAMPLES]} samples, not {n}"
        for row in found
        if row[EVAL_SAMPLES] != n
    ]


def _missing_checkpoint(folder: Path) -> list[str]:
    found = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return [] if found else [f"no checkpoint: {folder.name}/ lacks config.json or *.safetensors"]


def grader_failure(run: RunDir) -> str | None:
    """The grader's own report that it cannot grade any more, or None."""
    found = read_json(run.grader_failure)
    return None if found is None else f"the grader failed: {found.get('reason') or json.dumps(found)}"


def without_guesses(text: str) -> str:
    """A log without what Ray lists as possible causes of any death, the OOM killer always among them."""
    return re.sub(r"(possible reasons include|potential root causes).*", "", text, flags=re.IGNORECASE)


def explain(lines: Sequence[str]) -> str | None:
    """What the last lines of a log say about memory or disk, or None."""
    text = without_guesses("\n".join(lines))
    if any(sign in text for sign in OUT_OF_MEMORY):
        return "out of memory: lower the micro-batch sizes, the object store, or the number of slots"
    if any(sign in text for sign in NO_SPACE):
        return "no space left on the disk: free some, or set TMPDIR and --run-dir to another"
    return None
