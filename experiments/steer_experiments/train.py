"""``steer train``: one run from a recipe. Prepares, starts the training, watches it, and judges what it left.

A run ends in exactly one of the states finished, failed or stopped, with the reason in ``status.json``. Whatever
happens to this process, the training does not outlive it; when it ends by itself, nothing of the run is left running.
"""

import fcntl
import os
import shlex
import shutil
import signal
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
from .recipes import flatten, read_yaml
from .resume import resume_from
from .run_dir import RunDir, Status, now, write_json, write_yaml
from .watch import Verdict, finish, watch

CLUSTER_VARIABLE, RESUME_VARIABLE = "STEER_RAY_ADDRESS", "STEER_RESUME"
"""Set by whoever runs trials on a Ray cluster, or starts a preempted one again."""
EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 130}


def child_command(
    experiment: Experiment, prepared: Prepared, run_dir: Path, temp_dir: Path | None, resumed: bool = False
) -> list[str]:
    """The training's command line. A cluster that is named in the environment is used instead of a private one."""
    cluster = os.environ.get(CLUSTER_VARIABLE)
    ray = {"steer.ray.address": cluster} if cluster else ray_flags(experiment, temp_dir)
    own = flags(experiment, prepared, run_dir) | ray | ({"ckpt.load_enable": True} if resumed else {})
    return [sys.executable, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(own)]


def run_experiment(experiment: Experiment, path: Path, overwrite: bool = False, resume: bool = False) -> int:
    """Run to the end in the run directory ``path``; 0 finished, 1 failed, 130 stopped.

    With ``resume`` (or ``STEER_RESUME=1``) it goes on from the last checkpoint in ``<run>/ckpt`` that the metrics
    reach; from the beginning when there is none. A run that has finished stays as it is.

    Raises:
        ConfigError: the recipe needs a GPU and there is none; or the directory is in use, is no run directory, or holds
            a finished run and ``overwrite`` is False, or, with ``resume``, a run of another recipe.
    """
    run = RunDir(path.absolute())
    resume = resume or os.environ.get(RESUME_VARIABLE) == "1"
    if wrong := cpu_mistakes(flatten(experiment.openrlhf)):
        raise ConfigError([f"openrlhf.{one}" for one in wrong])
    _refuse_folder(run)
    run.path.mkdir(parents=True, exist_ok=True)
    with _exclusive(run), processes.stop_requests() as stop, processes.ray_temp_dir() as temp_dir:
        if resume and _is_finished(run):
            _say(f"has finished already: {run.path}")
            return 0
        _refuse_finished(run, overwrite)
        step = _going_on(experiment, run) if resume else None
        _clear(run, keep=step is not None)
        write_yaml(run.config, experiment.resolved())
        write_json(run.env, environment.describe([sys.executable, *sys.argv]) | {"resumed_after_step": step})
        me = psutil.Process()
        status = Status(state="preparing", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now())
        run.write_status(status.changed(ray_temp_dir=str(temp_dir)))
        verdict = Verdict("failed", "the supervisor ended early")
        processes.adopt_orphans()
        before = processes.descendants()
        try:
            verdict = _prepare(experiment, run, stop) or _train(experiment, run, temp_dir, stop, step)
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
    verdict = _as_asked(verdict, stop)
    return None if verdict.state == "finished" else Verdict(verdict.state, f"preparing: {verdict.reason}", verdict.code)


def _as_asked(verdict: Verdict, stop: list[int]) -> Verdict:
    """A cluster sends its request to end to every process of a job: the training may have ended of it before we
    looked, which is no failure."""
    if not stop or verdict.state != "failed":
        return verdict
    return Verdict("stopped", f"stopped by {signal.Signals(stop[0]).name}", verdict.code)


def _train(experiment: Experiment, run: RunDir, temp_dir: Path, stop: list[int], step: int | None) -> Verdict:
    prepared = read_prepared(run.prepared, experiment)
    command = child_command(experiment, prepared, run.path, temp_dir, resumed=step is not None)
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
        return _as_asked(verdict, stop)
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


def _is_finished(run: RunDir) -> bool:
    status = run.read_status()
    return status is not None and status.state == "finished"


def _going_on(experiment: Experiment, run: RunDir) -> int | None:
    """The step whose checkpoint the training goes on from, or None."""
    if run.config.exists() and read_yaml(run.config) != experiment.resolved():
        raise ConfigError(
            [f"--run-dir {run.path}: holds a run of another recipe, which cannot be resumed with this one; compare "
             f"{run.config.name}, or leave --resume out to begin anew"]
        )  # fmt: skip
    try:
        step = resume_from(experiment, run)
    except ValueError as error:
        _say(f"cannot go on ({error})")
        step = None
    _say("begins anew: there is no checkpoint to go on from" if step is None else f"goes on after step {step}")
    return step


def _refuse_finished(run: RunDir, overwrite: bool) -> None:
    if _is_finished(run) and not overwrite:
        raise ConfigError([f"--run-dir {run.path}: holds a finished run; add --overwrite, or give another folder"])


def _clear(run: RunDir, keep: bool) -> None:
    """Remove the files of an earlier attempt, so that nothing of it is taken for this one's. The status goes first.
    ``keep``: but for what a training that goes on needs."""
    files = (run.status, run.env, run.prepared, run.host_args, run.grader_failure)
    for path in files if keep else (*files, run.metrics, run.log):
        path.unlink(missing_ok=True)
    folders = (run.checkpoint, run.eval)
    for folder in folders if keep else (*folders, run.path / "ckpt", run.path / "probe"):
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
