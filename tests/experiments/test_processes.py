"""Processes of a run: nothing that it started is left, however it ended."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from steer_experiments import processes

WaitFor = Callable[[Callable[[], object]], None]
LONG_S = 60.0
SLEEP = "import time; time.sleep(600)"


def gone(pid: int) -> bool:
    """Dead; whoever inherited it need not have reaped it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(code: str, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code, *words], **options)


def test_the_training_dies_with_a_killed_supervisor(tmp_path: Path, wait_for: WaitFor) -> None:
    code = f"""
import os, sys
from steer_experiments import processes
child = processes.spawn([sys.executable, "-c", {SLEEP!r}], open(os.devnull, "wb"), os.environ)
print(child.pid, flush=True)
child.wait()
"""
    supervisor = python(code, stdout=subprocess.PIPE)
    assert supervisor.stdout
    child = psutil.Process(int(supervisor.stdout.readline()))
    assert child.is_running()
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: gone(child.pid))


def test_orphans_in_other_sessions_are_found(tmp_path: Path) -> None:
    """A grandchild that left its parent, its group and its session, as Ray's and vLLM's do."""
    code = f"""
import subprocess, sys
from steer_experiments import processes
processes.adopt_orphans()
before = processes.descendants()
inner = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
subprocess.run([sys.executable, "-c", inner], check=True)
(orphan,) = processes.descendants() - before
print(orphan.pid)
processes.end([orphan])
print(orphan.is_running())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S)
    pid, alive = done.stdout.split()
    assert alive == "False"
    assert gone(int(pid))


def test_rays_directory_takes_its_users_with_it(wait_for: WaitFor) -> None:
    with processes.ray_temp_dir() as folder:
        assert len(str(folder)) <= 60  # steer.ray.temp_dir's own bound
        holds = python("import sys, time; file = open(sys.argv[1] + '/log', 'w'); time.sleep(600)", str(folder))
        named = python(SLEEP, f"--temp-dir={folder}", start_new_session=True)
        other = python(SLEEP)
        wait_for((folder / "log").exists)
    assert not folder.exists()
    assert [holds.wait(LONG_S), named.wait(LONG_S)] == [-signal.SIGTERM] * 2
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_killed_supervisor_takes_rays_processes_with_it(wait_for: WaitFor) -> None:
    """Also those in sessions of their own, which no signal to us or to the training reaches."""
    code = f"""
import os, subprocess, sys
from steer_experiments.processes import ray_temp_dir
with ray_temp_dir() as folder:
    user = subprocess.Popen([sys.executable, "-c", {SLEEP!r}, f"--temp-dir={{folder}}"], start_new_session=True)
    print(folder, user.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    folder, pid = done.stdout.split()
    wait_for(lambda: not Path(folder).exists() and gone(int(pid)))


def test_a_directory_that_even_the_janitor_left_is_removed_by_the_next_run() -> None:
    left = Path(tempfile.gettempdir()) / f"{processes.RAY_DIR_PREFIX}test"
    left.mkdir()
    with processes.ray_temp_dir() as mine:
        assert not left.exists()
        with processes.ray_temp_dir() as other:
            assert mine.exists()
            assert other != mine
    assert not mine.exists()


def test_only_rays_directories_are_removed(tmp_path: Path) -> None:
    processes.remove_ray_dir(tmp_path)
    assert tmp_path.exists()


def test_alive_is_this_very_process(wait_for: WaitFor) -> None:
    me = psutil.Process()
    assert processes.is_alive(me.pid, me.create_time())
    assert not processes.is_alive(me.pid, me.create_time() - 100)
    child = python("")
    created = psutil.Process(child.pid).create_time()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not processes.is_alive(child.pid, created)
    child.wait()
