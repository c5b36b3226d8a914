"""What one run is: a frozen, fully checked :class:`Experiment`, and the OpenRLHF flags it becomes.

Importing this is light. Every mistake of a recipe is found at once, before anything is started.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SerializeAsAny, ValidationError, field_validator
from steer_openrlhf.errors import ConfigError, mistakes_of, suggest
from steer_openrlhf.hostargs import check_flags
from steer_openrlhf.registry import interventions

from .models import MODELS
from .recipes import Tree, flatten, merge, parse_overrides, read_recipe, set_keys
from .tasks import TASKS, PreparedTask

LOSS_FLAG = "actor.policy_loss_type"
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
MIB = 1024**2


class Section(BaseModel):
    """Base of every part of an experiment: frozen, unknown keys refused, no infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelPath(Section):
    """A model that exists: a local Hugging Face folder, or a hub id ``org/name``."""

    path: str


class RaySection(Section):
    """The private Ray cluster of a run. ``num_gpus`` are OpenRLHF's placement slots, CPU workers without CUDA."""

    num_cpus: int = Field(default=2, ge=1)
    num_gpus: int = Field(default=2, ge=1)
    object_store_memory_mb: int = Field(default=256, ge=80)


class EvalSection(Section):
    """How the leaderboard evaluates the final checkpoint. ``max_new_tokens`` None: as in training."""

    suite: str
    """A suite, or a group of suites such as ``math6``."""
    question: str | None = None
    """How a benchmark's problems are put (:mod:`steer_experiments.data.questions`); None: as the suite says."""
    n_samples: int = Field(default=4, ge=1)
    n_samples_of: dict[str, PositiveInt] = {}
    """Samples of each item of some suites, in place of ``n_samples``: 32 for AIME, 1 for the large ones."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class Experiment(Section):
    """One run, complete. ``openrlhf`` and ``steer`` are flags as nested mappings, judged by OpenRLHF's own parser."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    seed: int = Field(default=0, ge=0)
    task: SerializeAsAny[BaseModel]
    model: SerializeAsAny[BaseModel]
    openrlhf: Tree = {}
    steer: Tree = {}
    ray: RaySection = RaySection()
    env: dict[str, str] = {}
    eval: EvalSection
    stall_minutes: float = Field(default=15, gt=0)
    """A run that writes no metrics for so long has failed."""

    @field_validator("openrlhf", "steer", "env", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: Any) -> Any:
        plain = isinstance(value, Mapping)
        return {k: str(v) if isinstance(v, int | float) else v for k, v in value.items()} if plain else value

    @property
    def loss(self) -> str:
        return str(flatten(self.openrlhf).get(LOSS_FLAG, "ppo"))

    def resolved(self) -> Tree:
        """Everything, defaults too, as plain data: what ``config.yaml`` holds; a recipe that gives this experiment."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Prepared:
    """An experiment's task and model on disk. ``model`` is a folder, or a hub id."""

    task: PreparedTask
    model: str


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a recipe file with ``key=value`` overrides. Raises :class:`ConfigError` with every mistake.

    An override that is the path of another recipe (``layout.yaml``) is laid over the first, before any ``key=value``.
    """
    layers = [one for one in overrides if "=" not in one and one.endswith((".yaml", ".yml"))]
    pairs, mistakes = parse_overrides(one for one in overrides if one not in layers)
    tree = read_recipe(Path(path))
    for layer in layers:
        tree = merge(tree, read_recipe(Path(layer)))
    return build_experiment(tree, pairs, mistakes)


def build_experiment(tree: Tree, values: Iterable[tuple[str, Any]] = (), mistakes: Iterable[str] = ()) -> Experiment:
    """The experiment of a merged recipe with dotted keys set. Raises :class:`ConfigError` with every mistake.

    ``mistakes`` are the caller's own, to be reported together with those found here.
    """
    tree, found = set_keys(tree, values)
    found = [*mistakes, *found]
    parts = dict(tree)
    for section, kinds in (("task", _task_kinds), ("model", _model_kinds)):
        parts[section], wrong = _one_kind(section, tree.get(section), kinds())
        found += wrong
    experiment = None
    try:
        experiment = Experiment.model_validate(parts)
    except ValidationError as error:
        lost = {section for section in ("task", "model") if parts[section] is None}  # already explained
        known = _known_fields(Experiment)
        found += [one for one in mistakes_of(error, fields=known) if re.split(r"[: .]", one)[0] not in lost]
    found += _flag_mistakes(tree) + _env_mistakes(tree.get("env"))
    if found:
        raise ConfigError(found)
    assert experiment is not None
    return experiment


def _task_kinds() -> dict[tuple[str, str], type[BaseModel]]:
    return {("name", name): task.config for name, task in TASKS.items()}


def _model_kinds() -> dict[tuple[str, str], type[BaseModel]]:
    return {("path", ""): ModelPath} | {("builder", name): model.config for name, model in MODELS.items()}


def _one_kind(
    section: str, given: Any, kinds: Mapping[tuple[str, str], type[BaseModel]]
) -> tuple[BaseModel | None, list[str]]:
    """The typed section that is one of several kinds, chosen by a key (and, where it is a name, by its value)."""
    keys = sorted({key for key, _ in kinds})
    names = sorted(name for _, name in kinds if name)
    if not isinstance(given, Mapping):
        return None, [f"{section} = {given!r}: must be a mapping with {' or '.join(keys)} (known: {', '.join(names)})"]
    chosen = [key for key in keys if given.get(key) is not None]
    if len(chosen) != 1:
        return None, [f"{section}: give exactly one of {', '.join(keys)}; given: {', '.join(chosen) or 'none'}"]
    value = str(given[chosen[0]])
    kind = kinds.get((chosen[0], "")) or kinds.get((chosen[0], value))
    if kind is None:
        hint = suggest(value, names)
        return None, [f"{section}.{chosen[0]} = {value!r}: unknown; known: {', '.join(names)}" + (hint and f"; {hint}")]
    fields = {key: item for key, item in given.items() if item is not None or key in chosen}
    mistakes: list[str] = []
    if kind is ModelPath:
        fields["path"], mistakes = _checked_model_path(value)
    try:
        return kind.model_validate(fields), mistakes
    except ValidationError as error:
        return None, mistakes + mistakes_of(error, f"{section}.", kind.model_fields)


def _checked_model_path(path: str) -> tuple[str, list[str]]:
    """A local folder as an absolute path, a hub id as it is; one mistake when it looks local and is not there."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.absolute()), []
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) and not folder.exists():
        return path, []
    wrong = "has no config.json" if folder.is_dir() else "does not exist"
    return path, [f"model.path = {path!r}: {wrong}; give a Hugging Face model folder, or a hub id org/name"]


def _known_fields(model: type[BaseModel]) -> list[str]:
    """The model's field names and those of its sections: what an unknown key is compared with."""
    names = list(model.model_fields)
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                names += list(kind.model_fields)
    return names


def _flag_mistakes(tree: Mapping[str, Any]) -> list[str]:
    """Mistakes in ``openrlhf`` and ``steer``, judged by OpenRLHF's real parser with the plugin's flags."""
    sections = {name: tree.get(name) for name in ("openrlhf", "steer")}
    given = {name: flatten(value) for name, value in sections.items() if isinstance(value, Mapping)}
    own = {f"steer.{key}": value for key, value in given.get("steer", {}).items()}
    mistakes = []
    for flag in [*given.get("openrlhf", {}), *own]:
        if reason := _RUN_SETS.get(flag) or (flag.startswith("steer.ray.") and "set it in the section ray") or "":
            mistakes.append(f"{_key_of(flag)}: is set by the run itself; {reason}")
    for one in check_flags(given.get("openrlhf", {}) | own):
        flag = re.split(r"[: ]", one, maxsplit=1)[0]
        mistakes.append(one if flag.startswith("steer") else f"openrlhf.{one}")
    return mistakes


_RUN_SETS = {
    "actor.model_name_or_path": "set it in the section model",
    "data.prompt_dataset": "it comes from the section task",
    "data.input_key": "it comes from the section task",
    "data.label_key": "it comes from the section task",
    "eval.dataset": "it comes from the section task (its validation split)",
    "reward.remote_url": "it comes from the section task",
    "ckpt.output_dir": "it is the run directory's checkpoint folder",
    "ckpt.path": "it is in the run directory",
    "steer.run_dir": "give --run-dir",
    "logger.wandb.key": "a key does not belong in a file; export WANDB_API_KEY in the shell",
}


def _key_of(flag: str) -> str:
    return flag if flag.startswith("steer.") else f"openrlhf.{flag}"


def _env_mistakes(env: Any) -> list[str]:
    """Secrets in ``env:``. Their values are not repeated in the message."""
    names = list(env) if isinstance(env, Mapping) else []
    parts = {name: [part.rstrip("S") for part in str(name).upper().split("_")] for name in names}
    secret = [name for name in names if any(part.endswith(SECRET_WORDS) for part in parts[name])]
    return [f"env.{name}: looks like a secret; recipes are written to disk, export it in the shell" for name in secret]


def flag_of(key: str) -> str | None:
    """The flag a config key becomes: ``openrlhf.actor.adam.lr`` -> ``actor.adam.lr``, ``steer.k`` -> ``steer.k``,
    ``seed`` -> ``train.seed``; None for a key that is no flag."""
    section, _, rest = key.partition(".")
    if key == "seed":
        return "train.seed"
    if section == "openrlhf" and rest:
        return rest
    return key if section in interventions() and rest else None


def flags(experiment: Experiment, prepared: Prepared, run_dir: Path) -> Tree:
    """Every flag of the run, dotted name -> value, without Ray's (:func:`ray_flags`), which no result depends on."""
    task, run_dir = prepared.task, run_dir.absolute()
    own = {
        "actor.model_name_or_path": prepared.model,
        "data.prompt_dataset": str(task.train),
        "data.input_key": task.input_key,
        "data.label_key": task.label_key,
        "eval.dataset": str(task.validation),
        "reward.remote_url": str(task.reward_func),
        "ckpt.output_dir": str(run_dir / "checkpoint"),
        "ckpt.path": str(run_dir / "ckpt"),
        "steer.run_dir": str(run_dir),
    }
    chosen = {f"steer.{key}": value for key, value in flatten(experiment.steer).items()}
    return {"train.seed": experiment.seed} | flatten(experiment.openrlhf) | chosen | own


def ray_flags(experiment: Experiment, temp_dir: Path | None) -> Tree:
    """The flags of the run's private Ray cluster, which keeps its files in ``temp_dir`` (None: where Ray likes)."""
    return {
        "steer.ray.address": "local",
        "steer.ray.num_cpus": experiment.ray.num_cpus,
        "steer.ray.num_gpus": experiment.ray.num_gpus,
        "steer.ray.object_store_memory": experiment.ray.object_store_memory_mb * MIB,
        "steer.ray.temp_dir": str(temp_dir) if temp_dir else None,
    }
