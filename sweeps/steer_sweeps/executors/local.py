"""Trials as processes of this machine.

A job is a shell in its own session that runs the trial and notes its exit code, so that a later controller knows what
ended it. It inherits locked files: its own (whether it lives is whether that lock is held), its slot's, and one for
each of its devices. All are free exactly when it is gone, however it went, and whoever started it.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

from steer_experiments import processes
from steer_openrlhf.errors import ConfigError

from .base import ExecutorError, Job, JobState
from .config import LocalConfig
from .devices import Devices, present
from .locks import is_locked, try_lock
from .records import Record, end_marked, how, record_of, status_of, variables

SHELL = """
here=$1; shift
echo $$ > "$here/started" || exit 125
"$@"
code=$?
cd "$here" && echo $code > exit.tmp && mv exit.tmp exit
"""
FOREIGN_S = 120.0
"""A run of another host whose lock is not seen here counts as lost when its heartbeat has not moved for so long."""
EMPTY = "no free slot"


class LocalExecutor:
    """See :class:`.base.Executor`. A handle is the job's name."""

    def __init__(self, config: LocalConfig, study_dir: Path) -> None:
        self.config, self.study_dir, self.host = config, study_dir, os.uname().nodename
        names = config.devices if config.devices is not None else present() if config.gpus_per_trial else []
        if config.gpus_per_trial > len(names):
            raise ConfigError(
                [
                    f"executor.gpus_per_trial = {config.gpus_per_trial}, but this machine shows {len(names)} GPUs "
                    f"({', '.join(names) or 'none'}): lower it, or run steer doctor"
                ]
            )
        self._devices = Devices(names)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._beats: dict[str, tuple[str, float]] = {}
        self._clean: set[str] = set()

    def free(self) -> int:
        slots = sum(not is_locked(self._slot(index)) for index in range(self.config.slots))
        need = self.config.gpus_per_trial
        if not slots or not need:
            return slots
        return min(slots, self._devices.grantable(need) // need)

    # -- starting ------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> str:
        """Raises :class:`ExecutorError` when no slot is free."""
        record = record_of(self.study_dir, job.name)
        if self._began(record):
            return job.name
        held = self._hold(record, job.gpus)
        try:
            if record.started.exists():
                return job.name
            record.write(job, host=self.host)
            self._children[job.name] = self._spawn(job, record, held)
        finally:
            for handle in held.values():
                os.close(handle)
        return job.name

    def _hold(self, record: Record, gpus: int) -> dict[str, int]:
        """Everything the job needs, locked, by what it is: a device's name, "slot" and "job"."""
        slots = (try_lock(self._slot(index)) for index in range(self.config.slots))
        slot = next((handle for handle in slots if handle is not None), None)
        if slot is None:
            raise ExecutorError(EMPTY)
        held = {"slot": slot}
        if (own := try_lock(record.lock)) is not None:
            held["job"] = own
            devices = self._devices.take(gpus) if gpus else {}
            if devices is not None:
                return held | devices
        for handle in held.values():
            os.close(handle)
        raise ExecutorError("no free devices" if own is not None else f"{record.path.name} is being started elsewhere")

    def _spawn(self, job: Job, record: Record, held: dict[str, int]) -> subprocess.Popen[bytes]:
        env = os.environ | variables(job, record.path)
        if devices := [name for name in held if name not in ("slot", "job")]:
            env |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        with (job.run_dir / "supervisor.txt").open("ab") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", SHELL, "steer-job", str(record.path), *job.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                pass_fds=list(held.values()),
            )

    def find(self, name: str) -> str | None:
        return name if self._began(record_of(self.study_dir, name)) else None

    def _began(self, record: Record) -> bool:
        """A controller that was killed before the shell wrote its number has started nothing (or holds the lock)."""
        return record.known() and (record.started.exists() or is_locked(record.lock))

    def _slot(self, index: int) -> Path:
        return self.study_dir / "slots" / self.host / str(index)

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self, handle: str) -> JobState:
        if (child := self._children.get(handle)) is not None and child.poll() is not None:
            del self._children[handle]
        record = record_of(self.study_dir, handle)
        if is_locked(record.lock) or self._alive_elsewhere(record):
            self._deliver(record)
            return JobState.running
        self._sweep_up(record)
        if record.exit_code() is not None or record.wished() == "kill":
            return JobState.ended
        status = status_of(record)
        return JobState.ended if status and status.ended else JobState.lost

    def _alive_elsewhere(self, record: Record) -> bool:
        """Another host's lock may not be visible here. Its run's heartbeat is, and only whether it moves is judged."""
        if record.read().get("host") == self.host or record.exit_code() is not None:
            return False
        status, now = status_of(record), time.monotonic()
        beat = status.updated if status else ""
        seen, since = self._beats.setdefault(record.path.name, (beat, now))
        if seen != beat:
            self._beats[record.path.name] = beat, now
        return not (status and status.ended) and (seen != beat or now - since < FOREIGN_S)

    def exit_note(self, handle: str) -> str:
        record = record_of(self.study_dir, handle)
        if record.wished() == "kill":
            return "killed on request"
        code = record.exit_code()
        if code is not None:
            return how(code)
        return "" if is_locked(record.lock) else "vanished without an exit code (the host restarted, or all was killed)"

    def sync(self, handle: str) -> None:
        """Nothing to do: jobs write into the run directory themselves."""

    # -- ending --------------------------------------------------------------------------------------------------------

    def cancel(self, handle: str, force: bool = False) -> None:
        record = record_of(self.study_dir, handle)
        if is_locked(record.lock):
            record.ask("kill" if force else "stop")
            self._deliver(record)

    def _deliver(self, record: Record) -> None:
        """Do what was asked for. A run is asked once it has a status: before, nothing in it would listen."""
        wish = record.wished()
        if wish == "kill":
            self._kill(record)
        elif wish == "stop":
            status = status_of(record)
            ready = status and not status.ended and processes.is_alive(status.pid, status.pid_created)
            if status and ready and record.first_to_ask():
                os.kill(status.pid, signal.SIGTERM)

    def _kill(self, record: Record) -> None:
        end_marked(record.path, patience_s=0.0)
        if (child := self._children.pop(record.path.name, None)) is not None:
            child.wait()
        self._sweep_up(record)

    def _sweep_up(self, record: Record) -> None:
        """What a run that is over left behind: processes with its mark, and its Ray directory with all that uses it."""
        if record.path.name in self._clean or record.read().get("host") != self.host:
            return
        end_marked(record.path, processes.PATIENCE_S)
        status = status_of(record)
        if status and status.ray_temp_dir:
            processes.remove_ray_dir(status.ray_temp_dir)
        self._clean.add(record.path.name)

    def close(self) -> None:
        self._devices.stop_waiting()
