"""What every place that runs trials can do. Trials are judged by their run directory; a place only knows whether a job
still runs, and what it saw of its end."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from steer_openrlhf.errors import ConfigError

from .config import ExecutorConfig, LocalConfig, RayConfig, SlurmConfig

LONGEST_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ExecutorError(RuntimeError):
    """The place cannot be reached, or refused for a reason of its own. Nothing is known to be lost: try again."""


class JobState(StrEnum):
    """``ended``: judge the run by its ``status.json``. ``lost``: it vanished, and the place does not know why."""

    pending = "pending"
    running = "running"
    ended = "ended"
    lost = "lost"


@dataclass(frozen=True)
class Job:
    """One run of a trial. ``name`` is unique in all time and safe everywhere (file names, Ray, Slurm); ``command``
    honours the run directory's contract; ``run_dir`` is absolute and holds ``config.yaml``. Raises ``ValueError``."""

    name: str
    command: tuple[str, ...]
    run_dir: Path
    gpus: int = 0
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise ValueError(
                f"job name {self.name!r}: must be at most {LONGEST_NAME} letters, digits, '_', '.' and '-', "
                "and start with a letter or digit"
            )
        if not self.command or not self.run_dir.is_absolute() or self.gpus < 0:
            raise ValueError(f"job {self.name}: needs a command, an absolute run directory, and at least 0 GPUs")


class Executor(Protocol):
    """A place that runs jobs. Every method may raise :class:`ExecutorError`: say so, and try again later."""

    def free(self) -> int:
        """How many more jobs may be submitted now."""

    def submit(self, job: Job) -> str:
        """Start the job and return its handle, plain text that any later controller can use. Idempotent by
        ``job.name``: a job that a killed controller submitted is found, not started twice."""

    def find(self, name: str) -> str | None:
        """The handle of the job submitted under this name, or None."""

    def state(self, handle: str) -> JobState: ...

    def exit_note(self, handle: str) -> str:
        """What the place saw of the end ("killed by SIGKILL", "Slurm: PREEMPTED"); empty when nothing."""

    def cancel(self, handle: str, force: bool = False) -> None:
        """Ask the run to end as ``stopped``; with ``force`` kill it. Nothing of it is left. Harmless when repeated."""

    def sync(self, handle: str) -> None:
        """Bring the run directory's files up to date, where the job could not write them itself."""

    def close(self) -> None:
        """Let go of connections; jobs go on."""


def make_executor(config: ExecutorConfig, study_dir: Path) -> Executor:
    """The executor of a study. Raises :class:`ConfigError` when the place is not there or cannot do what is asked."""
    study_dir = study_dir.absolute()
    if isinstance(config, LocalConfig):
        from .local import LocalExecutor

        return LocalExecutor(config, study_dir)
    if isinstance(config, RayConfig):
        from .ray_jobs import RayExecutor

        return RayExecutor(config, study_dir)
    if isinstance(config, SlurmConfig):
        from .slurm import SlurmExecutor

        return SlurmExecutor(config, study_dir)
    raise ConfigError([f"executor = {config!r}: unknown; known: local, ray, slurm"])
