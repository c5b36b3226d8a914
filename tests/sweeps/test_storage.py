"""The journal: nothing torn, writes together or not at all; and patience with a storage that is away."""

import json
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from steer_openrlhf.errors import ConfigError
from steer_sweeps.storage import Journal, Patience, cut_torn_end, open_storage, resolved_url, together


@given(whole=st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b"")), max_size=4), torn=st.binary())
def test_only_an_incomplete_last_line_is_cut(
    tmp_path_factory: pytest.TempPathFactory, whole: list[bytes], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.log"
    kept = b"".join(line + b"\n" for line in whole)
    torn = torn.replace(b"\n", b"") * 300  # longer than a block
    path.write_bytes(kept + torn)
    cut_torn_end(path)
    assert path.read_bytes() == kept


def test_a_line_torn_while_others_write_costs_nobody_a_line(tmp_path: Path) -> None:
    """A writer is killed in the middle of its line; another that is at work at that time goes on."""
    storage = open_storage(tmp_path, None)
    study = optuna.create_study(study_name="a", storage=storage)
    study.add_trial(optuna.create_trial(value=1.0))
    with (tmp_path / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "work')
    study.add_trial(optuna.create_trial(value=2.0))
    assert [one.value for one in study.get_trials()] == [1.0, 2.0]
    fresh = optuna.load_study(study_name="a", storage=open_storage(tmp_path, None))
    assert [one.value for one in fresh.get_trials()] == [1.0, 2.0]


def test_what_is_written_together_is_one_write(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, None)
    study = optuna.create_study(study_name="a", storage=storage)
    trial = study.ask()
    journal = tmp_path / "journal.log"
    before = journal.read_bytes()
    with together(storage):
        trial.set_user_attr("a", 1)
        trial.set_user_attr("b", 2)
        assert journal.read_bytes() == before
    assert len(journal.read_bytes()[len(before) :].splitlines()) == 2
    assert study.trials[0].user_attrs == {"a": 1, "b": 2}

    def failing() -> None:
        with together(storage):
            trial.set_user_attr("c", 3)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert study.trials[0].user_attrs == {"a": 1, "b": 2}
    trial.set_user_attr("d", 4)
    assert study.trials[0].user_attrs == {"a": 1, "b": 2, "d": 4}


def test_variables_stand_for_passwords() -> None:
    assert resolved_url("postgresql://u:${PW}@h/${DB}", {"PW": "x", "DB": "d"}) == "postgresql://u:x@h/d"
    with pytest.raises(ConfigError, match="PW is not set"):
        resolved_url("postgresql://u:${PW}@h/d", {})


def test_a_database_that_is_not_there_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", "secret7")
    with pytest.raises(ConfigError) as caught:
        open_storage(tmp_path, "postgresql+psycopg://u:${PW}@127.0.0.1:1/none")
    assert "secret7" not in str(caught.value)
    assert "storage = 'postgresql+psycopg://u:${PW}@127.0.0.1:1/none'" in str(caught.value)


def test_a_storage_that_comes_back_is_waited_for() -> None:
    patience, told, waited, tries = Patience(), list[str](), list[int](), iter([OSError("full"), OSError("full"), None])
    patience.tell, patience.meanwhile = told.append, lambda: waited.append(1)

    def action() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "done"

    assert patience(action) == "done"
    assert len(waited) == 2
    assert "does not answer, trying again: OSError: full" in told[0]
    assert "is back" in told[1]
    assert len(told) == 2


def test_patience_ends() -> None:
    patience = Patience(away_s=0.0)
    with pytest.raises(ConfigError, match="OSError: gone; its trials go on"):
        patience(lambda: (_ for _ in ()).throw(OSError("gone")))


def test_a_journal_of_optunas_own_is_the_same_file(tmp_path: Path) -> None:
    """So that optuna-dashboard, and Optuna itself, read it."""
    study = optuna.create_study(study_name="a", storage=open_storage(tmp_path, None))
    study.add_trial(optuna.create_trial(value=1.0))
    plain = JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    assert optuna.load_study(study_name="a", storage=plain).trials[0].value == 1.0
    assert isinstance(Journal(tmp_path / "journal.log"), optuna.storages.journal.JournalFileBackend)
    assert all(json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines())
