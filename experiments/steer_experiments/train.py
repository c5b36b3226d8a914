"""``steer train``: one run from a recipe. Prepares, starts the training, watches it, and judges what it left.

A run ends in exactly one of the states finished, failed or stopped, with the reason in ``status.json``. Whatever
happens to this process, the training does not outlive it; when it ends by itself, nothing of the run is left running.
"""

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from steer_openrlhf.cpu import mistakes as cpu_mistakes
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.hostargs import to_argv

from . import environment, processes
from .checks import expected_steps, missing_results
from .config import Experiment, Prepared, flags, ray_flags
from .prepare import read_prepared
from .recipes import flatten
from .run_dir import RunDir, Status, now, write_json, write_yaml
from .watch import Verdict, finish, watch

EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 130}


def child_command(experiment: Experiment, prepared: Prepared, run_dir: Path, temp_dir: Path | None) -> list[str]:
    """The training's command line."""
    own = flags(experiment, prepared, run_dir) | ray_flags(experiment, temp_dir)
    return [sys.executable, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(own)]


def run_experiment(experiment: Experiment, path: Path, overwrite: bool = False) -> int:
    """Run to the end in the run directory ``path``; 0 finished, 1 failed, 130 stopped.

    Raises:
        ConfigError: the recipe needs a GPU and there is none; or the directory is in use, is no run directory, or holds
            a finished run and ``overwrite`` is False.
    """
    run = RunDir(path.absolute())
    if wrong := cpu_mistakes(flatten(experiment.openrlhf)):
        raise ConfigError([f"openrlhf.{one}" for one in wrong])
    _refuse_folder(run)
    run.path.mkdir(parents=True, exist_ok=True)
    with _exclusive(run), processes.stop_requests() as stop, processes.ray_temp_dir() as temp_dir:
        _refuse_finished(run, overwrite)
        _clear(run)
        write_yaml(run.config, experiment.resolved())
        write_json(run.env, environment.describe([sys.executable, *sys.argv]))
        me = psutil.Process()
        status = Status(state="preparing", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now())
        run.write_status(status.changed(ray_temp_dir=str(temp_dir)))
        verdict = Verdict("failed", "the supervisor ended early")
        processes.adopt_orphans()
        before = processes.descendants()
        try:
            verdict = _prepare(experiment, run, stop) or _train(experiment, run, temp_dir, stop)
        except BaseException as error:
            verdict = Verdict("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            processes.end(processes.descendants() - before)
            finish(run, verdict)
    return EXIT_CODES[verdict.state]


def _prepare(experiment: Experiment, run: RunDir, stop: list[int]) -> Verdict | None:
    """Task and model, in a process of their own; None when they are there."""
    _say("preparing the task and the model (cached; a model that is not there yet is taught first)")
    command = [sys.executable, "-m", "steer_experiments.prepare", str(run.config), str(run.prepared)]
    with run.log.open("ab") as log:
        child = processes.spawn(command, log, os.environ)
    verdict = watch(run, child, stop, minutes=None)
    return None if verdict.state == "finished" else Verdict(verdict.state, f"preparing: {verdict.reason}", verdict.code)


def _train(experiment: Experiment, run: RunDir, temp_dir: Path, stop: list[int]) -> Verdict:
    prepared = read_prepared(run.prepared, experiment)
    command = child_command(experiment, prepared, run.path, temp_dir)
    local = Path(prepared.model).is_dir()
    total = expected_steps(experiment, prepared.task.expected_n["train"])
    variables = os.environ | environment.added_variables(run.path, experiment.env, local)
    variables["VLLM_RPC_BASE_PATH"] = str(temp_dir)  # vLLM leaves its sockets behind
    variables |= environment.private_extensions(temp_dir)
    with run.log.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        child = processes.spawn(command, log, variables)
    _say(f"training {total or '?'} steps; its output is in {run.log}")
    status = run.read_status()
    assert status is not None
    run.write_status(status.changed(state="running", pgid=child.pid, total_steps=total))
    verdict = watch(run, child, stop, minutes=experiment.stall_minutes, say=_say)
    if verdict.state != "finished":
        return verdict
    wanted = flags(experiment, prepared, run.path)
    return verdict.unless(missing_results(experiment, run, wanted, prepared.task.expected_n))


def _say(line: str) -> None:
    print(line, flush=True)


def _refuse_folder(run: RunDir) -> None:
    if run.path.exists() and not run.path.is_dir():
        raise ConfigError([f"--run-dir {run.path}: is a file; give a folder"])
    files = list(run.path.glob("*")) if run.path.is_dir() else []
    started = all(path == run.lock or path.suffix == ".tmp" for path in files)  # killed before its first file was whole
    if not started and not run.config.exists():
        raise ConfigError([f"--run-dir {run.path}: is not empty and no run directory; give another folder"])


def _refuse_finished(run: RunDir, overwrite: bool) -> None:
    status = run.read_status()
    if status and status.state == "finished" and not overwrite:
        raise ConfigError([f"--run-dir {run.path}: holds a finished run; add --overwrite, or give another folder"])


def _clear(run: RunDir) -> None:
    """Remove the files of an earlier attempt, so that nothing of it is taken for this one's. The status goes first."""
    files = (run.status, run.env, run.prepared, run.metrics, run.host_args, run.grader_failure, run.log)
    for path in files:
        path.unlink(missing_ok=True)
    for folder in (run.checkpoint, run.eval, run.path / "ckpt", run.path / "probe"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _exclusive(run: RunDir) -> Iterator[None]:
    """One supervisor for a run directory. The kernel lifts the lock when its holder dies, however it dies."""
    with run.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"--run-dir {run.path}: another process is running this run"]) from None
        yield


if __name__ == "__main__":
    from .cli import main

    sys.exit(main())
