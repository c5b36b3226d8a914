"""The tiny base model: tokenizer, answers it is taught, determinism, and what is written to its folder."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steer_experiments.base_model import (
    CHARACTERS,
    EOS,
    SPECIALS,
    TinyQwen2Config,
    build,
    build_network,
    build_tokenizer,
    deterministic,
    measure,
    require_useful,
    respond,
    teach,
    worked_answer,
)
from steer_experiments.cache import MANIFEST
from steer_experiments.grading import IntegerGrader
from steer_experiments.models import MODELS, model_folder, prepare_model
from steer_experiments.tasks import prepare_task
from steer_experiments.tasks.tiny_arithmetic import TinyArithmeticConfig, splits

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TASK = TinyArithmeticConfig(train_size=40, validation_size=12, test_size=10)
BRIEF = TinyQwen2Config(hidden_size=32, layers=1, intermediate_size=32, steps=4, batch_size=8, threads=1)


@pytest.mark.parametrize(
    ("question", "worked", "direct"),
    [
        ("12+7-3=", "19#16", "#16"),
        ("1-9+3-4=", "-8,-5#-9", "#-9"),
        ("9*8*7=", "72#504", "#504"),
        ("0-5=", "#-5", "#-5"),
    ],
)
def test_answers_worked_by_hand(question: str, worked: str, direct: str) -> None:
    assert worked_answer(question, direct=False) == worked
    assert worked_answer(question, direct=True) == direct


def test_what_it_is_taught_is_right_and_fits_the_response_length() -> None:
    rows = [row for split in splits(TinyArithmeticConfig()).values() for row in split]
    for row in rows:
        for direct in (False, True):
            answer = worked_answer(row["input"], direct)
            assert IntegerGrader().grade(answer, row["label"]).state == "correct"
            assert len(answer) + 1 <= TinyQwen2Config().max_new_tokens
            assert set(row["input"] + answer) <= set(CHARACTERS)


# --- tokenizer -------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=CHARACTERS, max_size=60))
def test_tokenizer_round_trip_one_token_a_character(text: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    ended = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == text
    assert tokenizer.decode(ended, skip_special_tokens=False) == f"{text}<eos><pad>"


def test_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, use_fast=True)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert len(loaded) == len(SPECIALS) + len(CHARACTERS)
    assert loaded("12+7-3=", add_special_tokens=False)["input_ids"] == [5, 6, 14, 11, 15, 7, 17]
    assert loaded.decode([5, 6, 14, loaded.eos_token_id]) == f"12+{EOS}"
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.convert_tokens_to_ids("x") == loaded.unk_token_id == 3


# --- teaching --------------------------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_teaching_gives_the_same_weights_twice_and_others_for_another_seed() -> None:
    first, second, other = (weights(teach(c, TASK)[0]) for c in (BRIEF, BRIEF, BRIEF.model_copy(update={"seed": 8})))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_teaching_leaves_the_callers_torch_settings_alone() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    teach(BRIEF, TASK)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_teaching_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (1, 60):
        teach(BRIEF.model_copy(update={"steps": steps, "learning_rate": 0.01}), TASK)
    first, last = (float(loss) for loss in re.findall(r"loss ([0-9.]+)", capsys.readouterr().out))
    assert last < 0.75 * first


def test_flattening_halves_the_logits_whatever_the_shrink() -> None:
    taught, _, _ = teach(BRIEF.model_copy(update={"flattening": 1.0, "head_shrink": 1.0}), TASK)
    flat, _, _ = teach(BRIEF.model_copy(update={"flattening": 2.0, "head_shrink": 32.0}), TASK)
    ids = torch.tensor([[5, 6, 14, 11]])
    with torch.no_grad():
        assert torch.allclose(flat(input_ids=ids).logits * 2, taught(input_ids=ids).logits, atol=1e-6)


def test_measured_entropy_and_length_are_those_of_a_known_distribution() -> None:
    """With a zero head every token is equally likely: entropy ln V, and the end comes after V tokens on average."""
    tokenizer = build_tokenizer()
    with deterministic(BRIEF):
        model = build_network(BRIEF, tokenizer).eval()
        with torch.no_grad():
            model.lm_head.weight.zero_()
        rows = splits(TASK)["validation"]
        texts, entropy, length = respond(model, tokenizer, rows, samples=50, sample=True, max_new_tokens=200)
    vocabulary = len(tokenizer)
    assert len(texts) == 50 * len(rows)
    assert entropy == pytest.approx(torch.log(torch.tensor(float(vocabulary))).item(), rel=1e-5)
    assert length == pytest.approx(vocabulary, rel=0.15)  # geometric, n = 600: standard error 4 %


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_base_that_is_no_use_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    task = prepare_task(TASK, tmp_path)
    with pytest.raises(RuntimeError, match=r"answers 0\.0% .* 15%-55% is allowed"):
        build(BRIEF, task, tmp_path)
    assert not model_folder(BRIEF, task, tmp_path).exists()


@pytest.mark.parametrize("accuracy", [0.0, 0.149, 0.551, 1.0])
def test_bounds_refuse(accuracy: float) -> None:
    with pytest.raises(RuntimeError, match=r"model\.steps"):
        require_useful(accuracy)


def test_folder_holds_a_loadable_model_with_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("steer_experiments.base_model.ACCURACY_BOUNDS", (0.0, 1.0))  # four steps teach nothing
    task = prepare_task(TASK, tmp_path)
    folder = prepare_model(BRIEF, task, tmp_path)
    assert folder == prepare_model(BRIEF, task, tmp_path) == model_folder(BRIEF, task, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    taught, _, _ = teach(BRIEF, TASK)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(taught).items())
    assert model.dtype == torch.float32
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert not model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 128
    measured = json.loads((folder / "measured.json").read_text())
    again = measure(taught, tokenizer, task.rows("validation"), BRIEF)
    assert measured == again
    assert measured["n_items"] == 12
    again_elsewhere = prepare_model(BRIEF, task, tmp_path / "elsewhere")
    assert (folder / MANIFEST).read_bytes() == (again_elsewhere / MANIFEST).read_bytes()


def test_another_task_another_folder(tmp_path: Path) -> None:
    one, two = (prepare_task(TASK.model_copy(update={"seed": seed}), tmp_path) for seed in (1, 2))
    assert model_folder(BRIEF, one, tmp_path) != model_folder(BRIEF, two, tmp_path)


def test_default_size_and_registry() -> None:
    model = build_network(TinyQwen2Config(), build_tokenizer())
    assert 300_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 800_000
    assert set(MODELS) == {"tiny_qwen2"}


def test_bad_fields_are_refused_together() -> None:
    with pytest.raises(ValidationError) as caught:
        TinyQwen2Config.model_validate({"steps": 0, "head_dim": 16, "flatening": 2})
    assert {error["loc"][0] for error in caught.value.errors()} == {"steps", "head_dim", "flatening"}
