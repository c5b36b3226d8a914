"""Trials as jobs of a Ray cluster that is there already, through its Jobs API (plain HTTP: nothing of Ray is loaded
here, and every call has a time limit)."""

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer_experiments.cache import CACHE_VARIABLE, cache_root
from steer_experiments.environment import added_variables
from steer_experiments.recipes import read_yaml
from steer_openrlhf.errors import ConfigError

from .base import ExecutorError, Job, JobState
from .config import RayConfig
from .queued import Queued
from .ray_entry import KEY, Task
from .ray_mirror import assemble, write_files
from .records import Record, how, record_of, replaced

TIMEOUT_S = 30.0
SYNC_S = 2.0
"""A job's log is fetched whole: not more often than this while it runs."""
ENTRY = "steer_sweeps.executors.ray_entry"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
Info = dict[str, Any]


class RayExecutor(Queued):
    """See :class:`.base.Executor`. A handle is the job's name, which is its submission id."""

    def __init__(self, config: RayConfig, study_dir: Path) -> None:
        super().__init__(config.slots, study_dir)
        self.config = config
        self._python = config.python or sys.executable
        self._synced: dict[str, float] = {}
        try:
            self._request("GET", "/api/version")
        except ExecutorError as error:
            raise ConfigError(
                [f"executor.address = {config.address!r}: {error}; it is the dashboard of a running Ray cluster"]
            ) from None

    def _start(self, job: Job, record: Record) -> None:
        task = self._task(job, record)
        request = {
            "entrypoint": shlex.join([self._python, "-m", ENTRY]),
            "submission_id": job.name,
            "metadata": {KEY: json.dumps(asdict(task))},
            "runtime_env": {"env_vars": self._variables(job, task)},
        }
        try:
            self._request("POST", "/api/jobs/", request)
        except ExecutorError:
            if self.find(job.name) is None:  # else only the answer was lost
                raise

    def _task(self, job: Job, record: Record) -> Task:
        shared = self.config.shared_files
        cache = str(cache_root()) if shared else f"{self.config.scratch}/cache"
        return Task(
            name=job.name,
            mark=str(record.path),
            command=replaced(job.command, sys.executable, self.config.python),
            run_dir=str(job.run_dir),
            gpus=job.gpus,
            cpus_per_gpu=self.config.cpus_per_gpu,
            stop_s=self.config.stop_s,
            scratch=self.config.scratch,
            config=None if shared else (job.run_dir / "config.yaml").read_text(),
            env={CACHE_VARIABLE: self.config.env.get(CACHE_VARIABLE, cache), **job.env},
        )

    def _variables(self, job: Job, task: Task) -> dict[str, str]:
        """For all processes of the job, on every node: what a training of its own Ray would inherit, and how long Ray
        waits for a stopped job before it kills it."""
        recipe = read_yaml(job.run_dir / "config.yaml").get("env") or {}
        variables = added_variables(task.local()[0].path, recipe, model_is_local=False)
        return variables | self.config.env | {"RAY_JOB_STOP_WAIT_TIME_S": str(int(self.config.stop_s + 10))}

    def find(self, name: str) -> str | None:
        info = self._info(name)
        if info is None:
            return None
        known = json.loads((info.get("metadata") or {}).get(KEY, "{}")).get("mark")
        if known != str(record_of(self.study_dir, name).path):
            raise ExecutorError(f"the cluster has a job {name} of another study ({known}): give this one another name")
        return name

    def state(self, handle: str) -> JobState:
        info = self._info(handle)
        if info is None:
            return JobState.lost
        status = info["status"]
        return {"PENDING": JobState.pending, "RUNNING": JobState.running}.get(status, JobState.ended)

    def exit_note(self, handle: str) -> str:
        info = self._info(handle)
        if info is None:
            return "Ray: the cluster does not know the job (it was restarted)"
        status, code = info["status"], info.get("driver_exit_code")
        if status not in ENDED or (status == "SUCCEEDED" and not code):
            return ""
        if record_of(self.study_dir, handle).wished() == "kill":
            return "Ray: killed on request"
        message = (info.get("message") or "").strip().splitlines()
        why = how(code if code >= 0 else 128 - code) if code else message[0][:300] if message else ""
        return f"Ray: {status}" + (f", {why}" if why else "")

    def cancel(self, handle: str, force: bool = False) -> None:
        info = self._info(handle)
        if info is None or info["status"] in ENDED:
            return
        record = record_of(self.study_dir, handle)
        record.ask("kill" if force else "stop")
        self._request("POST", f"/api/jobs/{handle}/stop")  # Ray asks once, however often it is told
        if force:
            self._kill(record)

    def _kill(self, record: Record) -> None:
        """By a job of its own on the head node, where jobs run: the API itself only asks."""
        command = shlex.join([self._python, "-m", ENTRY, "--kill", str(record.path)])
        name = f"kill-{time.time_ns()}-{record.path.name}"
        self._request("POST", "/api/jobs/", {"entrypoint": command, "submission_id": name})

    def sync(self, handle: str) -> None:
        if self.config.shared_files:
            return
        info, now = self._info(handle), time.monotonic()
        over = info is None or info["status"] in ENDED
        if info is None or (not over and now - self._synced.get(handle, -SYNC_S) < SYNC_S):
            return
        self._synced[handle] = now
        try:
            logs = self._request("GET", f"/api/jobs/{handle}/logs")["logs"]
        except ExecutorError:
            if not over or self._info(handle) is None:
                raise
            return  # the job's node has gone, and its log with it
        write_files(record_of(self.study_dir, handle).run(), assemble(logs))

    def close(self) -> None:
        """Nothing is kept open."""

    def _info(self, name: str) -> Info | None:
        try:
            return self._request("GET", f"/api/jobs/{name}")
        except _NotFoundError:
            return None

    def _request(self, method: str, path: str, body: Info | None = None) -> Info:
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.config.address.rstrip("/") + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                found: Info = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace").strip().splitlines()
            kind = _NotFoundError if error.code == 404 else ExecutorError
            raise kind(f"Ray answered {error.code}: {reason[-1][:300] if reason else error.reason}") from None
        except (OSError, ValueError) as error:
            raise ExecutorError(f"Ray cannot be reached ({error})") from None


class _NotFoundError(ExecutorError):
    """The cluster answers that it does not know the job."""
