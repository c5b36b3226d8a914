"""Trials as jobs of a Slurm cluster.

submitit writes the batch script and talks to ``sbatch``; what runs is our plain command (:mod:`.slurm_entry`), so
nothing is pickled. Looking is one ``squeue`` for all jobs of the user, every few seconds at most. A job that has left
the queue is judged by the exit code it noted.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from steer_experiments.cache import CACHE_VARIABLE, cache_root
from steer_experiments.run_dir import write_text
from steer_openrlhf.errors import ConfigError

from .base import ExecutorError, Job, JobState
from .config import SlurmConfig
from .queued import Queued
from .records import Record, how, record_of, replaced, status_of

ENTRY = "steer_sweeps.executors.slurm_entry"
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
FORMAT = "%i|%T|%k"
LOOK_S = 2.0
TIMEOUT_S = 60.0
UNREACHABLE = ("Unable to contact", "Communication", "timed out", "Socket")
STOP_S = 25.0
"""Shorter than Slurm's own KillWait of 30 seconds."""
WARNING_S = 120
"""So long before its time limit a job is stopped and put back into the queue."""


class SlurmExecutor(Queued):
    """See :class:`.base.Executor`. A handle is the job's name; Slurm's number is in the job's record."""

    def __init__(self, config: SlurmConfig, study_dir: Path) -> None:
        super().__init__(config.slots, study_dir)
        self.config = config
        self._python = config.python or sys.executable
        self._seen: dict[str, tuple[str, str]] = {}
        self._looked = -LOOK_S
        if mistakes := _missing():
            raise ConfigError(mistakes)
        try:
            _run("sinfo", "--noheader")
        except ExecutorError as error:
            raise ConfigError([f"executor = slurm: {error}; run this where sbatch works"]) from None

    # -- the queue -----------------------------------------------------------------------------------------------------

    def _queue(self, fresh: bool = False) -> dict[str, tuple[str, str]]:
        """Record path -> job number and state, of all our jobs that Slurm still knows."""
        if fresh or time.monotonic() - self._looked >= LOOK_S:
            text = _run("squeue", "--me", "--noheader", "--states=all", f"--format={FORMAT}")
            parts = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
            self._seen = {comment: (number, state) for number, state, comment in parts}
            self._looked = time.monotonic()
        return self._seen

    # -- starting ------------------------------------------------------------------------------------------------------

    def _start(self, job: Job, record: Record) -> None:
        write_text(record.slurm_id, self._sbatch(job, record))
        self._looked = -LOOK_S

    def _sbatch(self, job: Job, record: Record) -> str:
        """Slurm's number for the new job."""
        import submitit

        class Plain(submitit.SlurmExecutor):
            """Runs a command, and pickles nothing."""

            def run(self, command: str) -> str:
                return str(self._submit_command(command).job_id)

        words = [self._python, "-m", ENTRY, str(record.path), str(STOP_S)]
        command = shlex.join([*words, *replaced(job.command, sys.executable, self.config.python)])
        submitter = Plain(folder=record.path, python=shlex.quote(self._python))
        submitter.update_parameters(**self._parameters(job, record))
        try:
            return submitter.run("exec " + command)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise ExecutorError(f"sbatch failed: {' '.join(str(error).split())[-300:]}") from None

    def _parameters(self, job: Job, record: Record) -> dict[str, Any]:
        config = self.config
        signal = f"B:USR2@{WARNING_S}" if (config.time_minutes or 0) * 60 > 2 * WARNING_S else None
        own = {"requeue": True, "signal": signal}
        variables = {CACHE_VARIABLE: str(cache_root()), **job.env}
        return {
            "job_name": job.name,
            "comment": str(record.path),
            "partition": config.partition,
            "time": config.time_minutes,
            "cpus_per_task": config.cpus_per_trial,
            "mem": config.memory_gb,
            "gpus_per_node": job.gpus or None,
            "setup": [f"export {key}={shlex.quote(value)}" for key, value in variables.items()],
            "use_srun": False,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {k: v for k, v in (own | config.extra).items() if v is not None},
        }

    def find(self, name: str) -> str | None:
        record = record_of(self.study_dir, name)
        if not record.known():
            return None
        if record.slurm_id.exists() or record.started.exists():
            return name
        if found := self._queue(fresh=True).get(str(record.path)):  # its controller was killed after sbatch
            write_text(record.slurm_id, found[0])
            record.mark_live()
            return name
        return None

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self, handle: str) -> JobState:
        record = record_of(self.study_dir, handle)
        _, state = self._queue().get(str(record.path), ("", ""))
        if state in PENDING:
            return JobState.pending
        if state in RUNNING:
            return JobState.running
        if state:
            write_text(record.path / "slurm_state", state)
        record.read()
        status = status_of(record)
        known = state or record.exit_code() is not None or (status and status.ended)
        return JobState.ended if known else JobState.lost

    def exit_note(self, handle: str) -> str:
        record = record_of(self.study_dir, handle)
        state = self.state(handle)
        if state in (JobState.pending, JobState.running):
            return ""
        file, code = record.path / "slurm_state", record.exit_code()
        last = file.read_text() if file.exists() else ""
        if not last and code is None:
            return "Slurm does not know the job any more, and it noted no exit code"
        if (last == "COMPLETED" or not last) and not code:
            return ""
        why = "killed on request" if record.wished() == "kill" else how(code) if code else ""
        return f"Slurm: {last or 'gone'}" + (f", {why}" if why else "")

    def sync(self, handle: str) -> None:
        """Nothing to do: the file system is shared."""

    def close(self) -> None:
        """Nothing is kept open."""

    # -- ending --------------------------------------------------------------------------------------------------------

    def cancel(self, handle: str, force: bool = False) -> None:
        """A job that still waits is taken out of the queue."""
        record = record_of(self.study_dir, handle)
        number, state = self._queue(fresh=True).get(str(record.path), ("", ""))
        if state not in (*PENDING, *RUNNING):
            return
        record.ask("kill" if force else "stop")
        if force:
            _run("scancel", "--signal=KILL", "--full", number, quiet=True)
            _run("scancel", number, quiet=True)
        elif state in PENDING:
            _run("scancel", number, quiet=True)
        else:
            _run("scancel", "--signal=USR1", "--batch", number, quiet=True)
        self._looked = -LOOK_S


def _missing() -> list[str]:
    tools = [name for name in ("sbatch", "squeue", "scancel", "sinfo", "scontrol") if shutil.which(name) is None]
    mistakes = [f"executor = slurm: {name} is not installed on this machine" for name in tools]
    try:
        import submitit  # noqa: F401
    except ImportError:
        mistakes.append("executor = slurm: needs submitit; install it with: pip install 'steer-openrlhf[slurm]'")
    return mistakes


def _run(*command: str, quiet: bool = False) -> str:
    """The output. ``quiet``: that a job has just ended is no error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExecutorError(f"{command[0]}: {error}") from None
    if done.returncode and not (quiet and not any(one in done.stderr for one in UNREACHABLE)):
        raise ExecutorError(f"{command[0]} failed: {' '.join((done.stderr or done.stdout).split())[:300]}")
    return done.stdout
