"""Run directories as the leaderboard and the report see them: read once, nothing computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from steer_experiments.recipes import flatten, read_yaml
from steer_experiments.run_dir import RunDir, read_json
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.registry import HOST_LOSSES

from .metrics import Scores, scores_of
from .records import Meta, load_evaluation

T = TypeVar("T")
LOSS_KEY = "openrlhf.actor.policy_loss_type"
ENTROPY = "train/steer/entropy"
METRICS = (
    *("train/rollout/reward_mean", ENTROPY, f"{ENTROPY}_change", "train/steer/weight_mean"),
    *("train/steer/weight_at_min", "train/steer/omega_abs_p90", "train/grade_failed"),
)
"""What of ``metrics.jsonl`` is kept, beside evaluations: all of it, of 1,000 trials, would not fit into memory."""
_KEPT, _EVALUATED = frozenset(("step", *METRICS)), "eval/"
BASE = "base model"
"""The method of an evaluated model that no run trained."""
_TRIALS, _SEED = "trials", "seed-"
_NOT_SETTINGS = ("name", "seed", LOSS_KEY, "openrlhf.train.seed")
_PROBE = "steer.probe."  # measures, changes nothing
_SETTINGS = ("openrlhf.", "steer.", "task.", "model.")


@dataclass(frozen=True)
class Scored:
    """A complete evaluation without its texts: those are read again where they are shown."""

    meta: Meta
    scores: Scores


@dataclass(frozen=True)
class Run:
    """One run directory. ``evaluations`` are the complete ones by suite; ``problems`` say what could not be read."""

    path: Path
    label: str
    method: str
    seed: int | None
    settings: Mapping[str, Any]
    """Dotted config key -> value of what can change a result; without ``steer.*`` where the method ignores it, and
    without what is null."""
    state: str
    reason: str | None
    step: int
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Scored] = field(default_factory=dict)
    problems: Sequence[str] = ()
    environment: Mapping[str, Any] | None = None
    """``env.json``; None where it is missing or damaged."""

    @property
    def study(self) -> Path | None:
        """The study directory the run belongs to, if any: it is ``trials/<run>`` or ``trials/<run>/seed-<s>`` there."""
        parents = self.path.absolute().parents
        place = parents[1] if self.path.name.startswith(_SEED) else parents[0]
        return place.parent if place.name == _TRIALS else None


@dataclass(frozen=True)
class Series:
    """A metric over steps. ``missing`` are the steps where it was not a finite number."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    missing: tuple[int, ...] = ()


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories that ``paths`` name: each a run, an evaluated model, a folder of them, or a study (its
    ``trials/*`` and their ``seed-*``: baselines, then by number).

    Raises:
        ConfigError: every path that is none of them.
    """
    runs: list[Path] = []
    mistakes = []
    for path in paths:
        trials = _folders(path / _TRIALS, "*")
        if trials:
            runs += [run for trial in trials for run in _folders(trial, f"{_SEED}*") or [trial]]
        elif _is_run(path):
            runs.append(path)
        elif inside := [one for one in _folders(path, "*") if _is_run(one)]:
            runs += inside
        else:
            wrong = "does not exist" if not path.exists() else "has neither config.yaml nor trials/"
            mistakes.append(f"{path}: {wrong}; give a run directory or a study directory")
    if mistakes:
        raise ConfigError(mistakes)
    return list(dict.fromkeys(runs))


def _folders(path: Path, pattern: str) -> list[Path]:
    """Folders in ``path``, names first, then numbers in their order."""
    found = [one for one in path.glob(pattern) if one.is_dir() and not one.name.startswith(".")]
    return sorted(found, key=lambda one: (one.name.isdigit(), one.name.removeprefix(_SEED).zfill(9)))


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("config.yaml", "status.json")) or _is_model(path)


def _is_model(path: Path) -> bool:
    """Whether this holds the evaluation of a model that no run trained."""
    known = any((path / name).exists() for name in ("config.yaml", "status.json"))
    return not known and any((path / "eval").glob("*.meta.json"))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """:func:`find_runs`, read; where two would be called the same, each is named after its study or folder as well."""
    runs = [read_run(path) for path in find_runs(paths)]
    labels = [run.label for run in runs]
    if len(set(labels)) == len(labels):
        return runs
    return [replace(run, label=f"{(run.study or run.path.absolute().parent).name}: {run.label}") for run in runs]


def read_run(path: Path) -> Run:
    """Everything in a run directory that analysis needs. What is damaged becomes a problem of this run, no error."""
    files = RunDir(path)
    problems: list[str] = []
    config = flatten(_read(lambda: read_yaml(files.config), problems) or {})
    metrics = [_kept(row) for row in _read(files.read_metrics, problems) or []]
    status = _read(files.read_status, problems)
    method = str(config.get(LOSS_KEY, "ppo")) if config else BASE if _is_model(path) else "unknown"
    return Run(
        path=path,
        label=_label(path),
        method=method,
        seed=config.get("seed"),
        settings=_settings(config, method),
        state=status.state if status else "finished" if method == BASE else "not started",
        reason=status.reason if status else None,
        step=max([status.step if status else 0, *(int(row.get("step", 0)) for row in metrics)]),
        metrics=metrics,
        evaluations=_evaluations(files.eval, problems),
        environment=_read(lambda: read_json(files.env), problems),
        problems=problems,
    )


def _label(path: Path) -> str:
    """``trial 3``, ``trial 3 seed 1``, or the folder's name."""
    of_seed = path.name.startswith(_SEED)
    arm = path.absolute().parent if of_seed else path
    name = f"trial {arm.name}" if arm.absolute().parent.name == _TRIALS and arm.name.isdigit() else arm.name
    return f"{name} seed {path.name.removeprefix(_SEED)}" if of_seed else name


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in row if key in _KEPT or key.startswith(_EVALUATED)}


def _read(reader: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return reader()
    except ValueError as error:
        problems.append(str(error))
        return None


def _settings(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    ignored = ("steer.",) if method in HOST_LOSSES else (_PROBE,)
    chosen = (key for key in config if key.startswith(_SETTINGS) and key not in _NOT_SETTINGS)
    return {key: config[key] for key in chosen if not key.startswith(ignored) and config[key] is not None}


def _evaluations(folder: Path, problems: list[str]) -> dict[str, Scored]:
    found = {}
    for meta in sorted(folder.glob("*.meta.json")):
        suite = meta.name.removesuffix(".meta.json")
        try:
            evaluation = load_evaluation(folder, suite)
            found[suite] = Scored(evaluation.meta, scores_of(evaluation))
        except ValueError as error:
            problems.append(str(error))
    return found


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Keys whose value is not the same in all of ``runs``, in order of first appearance."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its shortest ending that no other of them has: ``steer.lambda_min`` -> ``lambda_min``."""
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        clashes = [other for other in keys if other != key]
        names[key] = next(
            (end for end in endings if not any(other == end or other.endswith(f".{end}") for other in clashes)), key
        )
    return names


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> Series:
    """The finite values of a metric by step; a value of null (NaN or infinite when written) is counted as missing."""
    points: dict[int, float] = {}
    missing = []
    for row in metrics:
        if name not in row or "step" not in row:
            continue
        value = row[name]
        if isinstance(value, int | float) and value == value and abs(value) != float("inf"):
            points[int(row["step"])] = float(value)
        else:
            missing.append(int(row["step"]))
    steps = sorted(points)
    return Series(tuple(steps), tuple(points[step] for step in steps), tuple(missing))
