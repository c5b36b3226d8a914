"""The fork server with real processes: what a client's parent sees, and that nothing outlives what it belongs to."""

import ast
import importlib.util
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from steer_openrlhf import fork_server
from steer_openrlhf.fork_client import is_served
from steer_openrlhf.fork_server import fits, python_program
from steer_openrlhf.hostargs import HOST_MODULE
from steer_openrlhf.train_ppo_ray import HOST_VARIABLES

SERVED = "  # import spawn_main"  # what makes a piece of code worth a fork
SERVE = "from steer_openrlhf.fork_server import main; import sys; main(sys.argv[1], sys.argv[2], ('decimal',))"
SECONDS = 30


@pytest.fixture
def program() -> Iterator[str]:
    with python_program(None) as found:
        assert found
        yield found


@pytest.fixture
def start_server(program: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> subprocess.Popen[bytes]:
        address = str(Path(program).with_name("server"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen()
            words = [sys.executable, "-c", SERVE, address, str(listener.fileno())]
            child = subprocess.Popen(words, pass_fds=[listener.fileno()], env=os.environ | variables)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait(SECONDS)


@pytest.fixture
def server(start_server: Callable[..., subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    return start_server()


def run(program: str, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = [program, "-B", "-c", code + SERVED, "an argument"]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, **options)  # type: ignore[call-overload,no-any-return]


def started(program: str, server: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A client whose process sleeps, and that process."""
    code = "import time; print('there', flush=True); time.sleep(600)" + SERVED
    client = subprocess.Popen([program, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout
    assert client.stdout.readline() == "there\n"
    (fork,) = psutil.Process(server.pid).children()
    return client, fork


def gone(process: psutil.Process) -> bool:
    """Whether it ends; a zombie, whose parent has not looked yet, has ended."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_fork_is_the_program_with_the_clients_environment(program: str, server: object, tmp_path: Path) -> None:
    code = "from os import *; import sys; print(getcwd(), environ['MINE'], 'HOME' in environ, sys.argv)"
    done = run(program, code, cwd=tmp_path, env={"MINE": "5"})
    assert done.stdout == f"{tmp_path} 5 False ['-c', 'an argument']\n", done.stderr


def test_exit_codes_and_tracebacks_arrive(program: str, server: object) -> None:
    assert run(program, "raise SystemExit(7)").returncode == 7
    failed = run(program, "1 / 0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    assert run(program, "import os; os.abort()").returncode == -signal.SIGABRT


def test_a_script_runs_as_main(program: str, server: object, tmp_path: Path) -> None:
    script = tmp_path / "default_worker.py"
    script.write_text("import sys; print(__name__, sys.argv[1:], 'decimal' in sys.modules)")
    done = subprocess.run([program, "-u", script, "a"], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "__main__ ['a'] True\n"


def test_a_fork_has_its_own_name_and_room_for_another(program: str, server: object) -> None:
    show = "print(open(f'/proc/{os.getpid()}/cmdline').read().rstrip(chr(0)))"
    code = f"import os, setproctitle; {show}; setproctitle.setproctitle('VLLM::EngineCore'); {show}"
    first, second = run(program, code).stdout.splitlines()
    assert first.startswith(f"{sys.executable} -B -c 'import os")
    assert second.rstrip() == "VLLM::EngineCore"


def test_two_forks_draw_different_random_numbers(program: str, server: object) -> None:
    code = "import random; print(random.random())"
    assert run(program, code).stdout != run(program, code).stdout


def test_a_signal_passes_through_the_client(program: str, server: subprocess.Popen[bytes]) -> None:
    client, fork = started(program, server)
    client.terminate()
    assert client.wait(SECONDS) == -signal.SIGTERM
    assert gone(fork)


def test_a_killed_client_takes_its_process_along(program: str, server: subprocess.Popen[bytes]) -> None:
    client, fork = started(program, server)
    client.kill()
    client.wait(SECONDS)
    assert gone(fork)
    assert run(program, "raise SystemExit(3)").returncode == 3  # the server goes on


def test_a_killed_server_takes_all_along(program: str, server: subprocess.Popen[bytes]) -> None:
    client, fork = started(program, server)
    server.kill()
    assert client.wait(SECONDS) == -signal.SIGKILL
    assert gone(fork)


def test_the_server_ends_with_rays_daemon(program: str, start_server: Callable[..., subprocess.Popen[bytes]]) -> None:
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    server = start_server(RAY_RAYLET_PID=str(daemon.pid))
    client, fork = started(program, server)
    daemon.kill()
    daemon.wait(SECONDS)
    server.wait(SECONDS)
    assert gone(fork)
    client.wait(SECONDS)


def test_without_a_server_the_client_is_python(program: str, server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait(SECONDS)
    done = run(program, "import sys; print('decimal' in sys.modules, sys.argv)")
    assert done.stdout == "False ['-c', 'an argument']\n"


def test_multiprocessing_spawns_through_the_program(program: str, server: object) -> None:
    context = multiprocessing.get_context("spawn")
    number = random.random()
    context.set_executable(program)
    try:
        queue = context.Queue()
        process = context.Process(target=queue.put, args=(number,))
        process.start()
        assert queue.get(timeout=SECONDS) == number
        process.join(SECONDS)
        assert process.exitcode == 0
    finally:
        context.set_executable(sys.executable)


def test_only_what_imports_the_stack_is_forked() -> None:
    assert is_served(["-u", "/x/ray/_private/workers/default_worker.py", "--node-ip-address=1"])
    assert is_served(["-B", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=6)"])
    assert not is_served(["-c", "from multiprocessing.resource_tracker import main;main(5)"])


def test_a_worker_with_other_ray_settings_is_no_fork() -> None:
    own = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7", "CUDA_VISIBLE_DEVICES": ""}
    worker = ["x/default_worker.py"]
    assert fits({"arguments": worker, "environ": own | {"CUDA_VISIBLE_DEVICES": "0"}}, own)
    assert not fits({"arguments": worker, "environ": own | {"RAY_JOB_ID": "02000000"}}, own)
    assert not fits({"arguments": worker, "environ": own | {"RAY_x": "1"}}, own)
    assert fits({"arguments": ["-c", "..."], "environ": own | {"RAY_ADDRESS": "127.0.0.1:1"}}, own)


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_server.SWITCH, "0")
    with python_program(None) as found:
        assert found is None


def test_a_folder_too_deep_for_a_socket_is_no_mistake(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with python_program(str(deep)) as found:
        assert found is None


def test_the_early_cluster_gives_workers_what_openrlhf_gives_them() -> None:
    """``HOST_VARIABLES`` against the source of OpenRLHF's main: the calls ``os.environ.get(name, default)``."""
    spec = importlib.util.find_spec(HOST_MODULE)
    assert spec
    assert spec.origin
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    (found,) = [one.value for one in ast.walk(tree) if isinstance(one, ast.keyword) and one.arg == "runtime_env"]
    (variables,) = [node for node in ast.walk(found) if isinstance(node, ast.Dict) and len(node.keys) > 1]
    calls = [ast.unparse(value) for value in variables.values]
    assert calls == [f"os.environ.get({name!r}, {value!r})" for name, value in HOST_VARIABLES.items()]
