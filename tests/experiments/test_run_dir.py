"""The run directory under faults: torn lines, writers killed at any moment, damaged files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.run_dir import RunDir, Status, now, read_json, read_metrics, write_json, write_text

rows = st.lists(st.fixed_dictionaries({"step": st.integers(0, 99), "x": st.none() | st.floats(-1, 1)}), max_size=5)


def status(**changes: Any) -> Status:
    return Status(state="running", pid=1, pid_created=1.0, started=now(), updated=now()).changed(**changes)


@given(rows=rows, cut=st.integers(1, 20))
def test_a_torn_last_line_is_left_out(rows: list[dict[str, Any]], cut: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    torn = json.dumps({"step": 100, "value": "x" * 20})[:-cut]
    path.write_text(text + torn)
    assert read_metrics(path) == rows
    path.write_text(text + torn + "\n")
    assert read_metrics(path) == rows


def test_a_multibyte_character_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": "\xc3')
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("damage", ['{"step": 2', "[1]", "nothing"])
def test_damage_before_the_last_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: damaged line"):
        read_metrics(path)


def test_no_files_are_no_rows_and_no_status(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "nothing")
    assert (run.read_metrics(), run.read_status(), run.log_tail()) == ([], None, [])
    assert not run.path.exists()


def test_status_round_trip_and_heartbeat(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = status(state="finished", step=7, exit_code=0)
    run.write_status(first)
    assert run.read_status() == first
    assert first.ended
    assert not status().ended
    assert (tmp_path / "status.json").stat().st_mode & 0o044  # readable for others, unlike mkstemp's


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state"):
        status(state="done")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(ValueError, match=r"status\.json"):
        RunDir(tmp_path).read_status()


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from steer_experiments.run_dir import write_json
number = 0
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "same": number, "filler": "x" * 200_000})
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.1])
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "x.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    while not path.exists():
        assert writer.poll() is None
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    found = read_json(path)
    assert found is not None
    assert found["number"] == found["same"] >= 1


def test_log_tail_keeps_the_end_of_progress_bars(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.log.write_bytes(b"first\n\n 10%\r 50%\r100% done\nlast \xff\n")
    assert run.log_tail(2) == ["100% done", "last \ufffd"]
