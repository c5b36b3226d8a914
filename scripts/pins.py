"""Bring requirements/cpu.txt up to date with cpu.in: `make pins`, or `scripts/pins.py --upgrade` for new versions.

Asks pip to resolve cpu.in without installing anything and writes down what it chose. Existing pins are kept as
constraints unless --upgrade is given. torch's local version (+cpu) is dropped, and so are the CUDA libraries that only
its stock build asks for: pip adds those itself where that build is installed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
CUDA_ONLY = re.compile(r"nvidia-(?!ml-py)|cuda-")


def name_of(distribution: str) -> str:
    """The normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def pins(chosen: Iterable[tuple[str, str]]) -> list[str]:
    """Sorted `name==version` lines for (name, version) pairs."""
    public = {name_of(name): version.split("+")[0] for name, version in chosen}
    return [f"{name}=={version}" for name, version in sorted(public.items()) if not CUDA_ONLY.match(name)]


def split_header(text: str) -> tuple[list[str], list[str]]:
    """The comment lines and the pins of a requirement file."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]


def resolve(upgrade: bool) -> list[tuple[str, str]]:
    """(name, version) of everything pip would install for cpu.in into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-r", str(REQUIREMENTS / "cpu.in")]
    if not upgrade:
        command += ["-c", str(REQUIREMENTS / "cpu.txt")]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [(item["metadata"]["name"], item["metadata"]["version"]) for item in json.loads(answer)["install"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="choose the newest allowed versions anew")
    target = REQUIREMENTS / "cpu.txt"
    header, old = split_header(target.read_text("utf-8"))
    new = pins(resolve(parser.parse_args().upgrade))
    temporary = target.with_suffix(".txt.new")
    temporary.write_text("\n".join([*header, *new]) + "\n", "utf-8")
    os.replace(temporary, target)
    print(f"{target.name}: {len(new)} pins; new: {sorted(set(new) - set(old))}; gone: {sorted(set(old) - set(new))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
