"""Records survive a kill at any byte, and a file is complete only with its exact number."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steer_analysis.checkpoint import check_checkpoint
from steer_analysis.plan import request_seed
from steer_analysis.records import Record, RecordFile, load_evaluation, read_meta, read_records


def record(item: str, sample: int = 0) -> Record:
    text = {"level": "easy", "prompt": "1+1=", "output": "2\n\u2028ü", "answer": "2", "gold": "2", "reason": None}
    found: dict[str, Any] = {"item": item, "sample": sample, "seed": 1, "verdict": "correct", "grader": "g@1"}
    return Record(**(found | text))


@given(st.integers(0, 2000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_at_any_byte_continues(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    path.unlink(missing_ok=True)
    everything = [record(f"i{n}") for n in range(5)]
    with RecordFile(path) as file:
        file.append(everything)
    whole = path.read_bytes()
    os.truncate(path, min(cut, len(whole)))
    with RecordFile(path) as file:
        kept = list(file.records)
        assert kept == everything[: len(kept)]
        assert len(kept) == whole[: min(cut, len(whole))].count(b"\n")
        file.append(everything[len(kept) :])
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_an_error_and_not_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(asdict(record(f"i{n}"))) for n in range(3)]
    path.write_text("\n".join([lines[0], lines[1][:30], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: damaged"):
        read_records(path)


def test_a_sample_cannot_be_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps(asdict(record("i"))) + "\n"
    path.write_text(line * 2)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: item 'i' sample 0 is there twice"):
        read_records(path)


def test_an_unknown_verdict_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(asdict(record("i")) | {"verdict": "maybe"}) + "\n")
    with pytest.raises(ValueError, match="damaged record"):
        read_records(path)


def test_two_evaluations_do_not_write_one_file(tmp_path: Path) -> None:
    code = "import pathlib, sys; from steer_analysis.records import RecordFile; RecordFile(pathlib.Path(sys.argv[1]))"
    with RecordFile(tmp_path / "a.jsonl"):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.jsonl"], stdout=subprocess.PIPE, text=True)
        assert other.stdout
        assert "another evaluation is writing it; waiting" in other.stdout.readline()
        assert other.poll() is None
    assert other.wait(60) == 0
    with RecordFile(tmp_path / "a.jsonl") as file:
        assert file.records == []


def test_meta_comes_back_as_it_was_written(tmp_path: Path, run_maker: Any) -> None:
    folder = run_maker(tmp_path / "a") / "eval"
    meta = load_evaluation(folder, "tiny_test").meta
    written = json.loads((folder / "tiny_test.meta.json").read_text())
    assert written["protocol_hash"] == meta.protocol.hash
    assert written["expected_records"] == 160
    assert read_meta(folder / "tiny_test.meta.json") == meta


def test_not_complete_until_the_meta_says_so(tmp_path: Path, run_maker: Any) -> None:
    folder = run_maker(tmp_path / "a") / "eval"
    path = folder / "tiny_test.meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(ValueError, match="not complete"):
        load_evaluation(folder, "tiny_test")


def test_records_of_another_grader_than_the_meta_says_are_not_believed(tmp_path: Path, run_maker: Any) -> None:
    folder = run_maker(tmp_path / "a") / "eval"
    path = folder / "tiny_test.meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"protocol": meta["protocol"] | {"grader": "integer@2"}}))
    with pytest.raises(ValueError, match="graded by integer@1, the meta file says integer@2"):
        load_evaluation(folder, "tiny_test")


def test_where_the_items_came_from_does_not_change_the_protocol(tmp_path: Path, run_maker: Any) -> None:
    protocol = load_evaluation(run_maker(tmp_path / "a") / "eval", "tiny_test").meta.protocol
    other = replace(protocol, revision="another file with the same items")
    assert (other, other.hash) == (protocol, protocol.hash)
    assert replace(protocol, grader="math@2").hash != protocol.hash


def test_damaged_meta_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.meta.json").write_text('{"protocol": {"suite": "a"}}')
    with pytest.raises(ValueError, match=r"a\.meta\.json: is not an evaluation's meta file"):
        read_meta(tmp_path / "a.meta.json")


def test_request_seeds_are_fixed_and_different() -> None:
    assert request_seed(0, "i", 1) == request_seed(0, "i", 1)
    seeds = {request_seed(seed, item, sample) for seed in (0, 1) for item in ("i", "j") for sample in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)


def safetensors(path: Path, data: bytes = b"\0" * 8) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_checkpoint_problems_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        check_checkpoint(tmp_path / "none")
    safetensors(tmp_path / "model.safetensors", data=b"\0" * 7)
    with pytest.raises(ValueError, match=r"config.json is missing; the tokenizer .* model.safetensors is cut short"):
        check_checkpoint(tmp_path)
    safetensors(tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    check_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00002.safetensors"}}')
    with pytest.raises(ValueError, match=r"model-00002.safetensors is missing"):
        check_checkpoint(tmp_path)
