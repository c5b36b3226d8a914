"""Reading ``metrics.jsonl`` while it grows: always what a whole reading would give."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.run_dir import MetricsReader, read_metrics

ROWS = [{"step": step, "eval/x": step / 7} for step in range(6)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_it_reads_what_a_whole_reading_reads(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.read() == []
    for end in sorted([*cuts, len(TEXT)]):
        path.write_bytes(TEXT[:end])
        whole = TEXT[:end].count(b"\n")
        assert reader.read() == ROWS[:whole] == read_metrics(path)[:whole]


def test_a_file_that_became_shorter_is_read_anew(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint drops the steps after it."""
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    path.write_bytes(TEXT)
    assert len(reader.read()) == 6
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert reader.read() == ROWS[:1]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{"st\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:3: damaged line"):
        MetricsReader(path).read()
