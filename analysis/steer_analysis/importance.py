"""How much each searched parameter mattered: Optuna's own importances, of a study's journal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steer_experiments.recipes import read_yaml

from .study import STUDY_FILE

FEWEST_TRIALS = 10  # fewer say nothing of which parameter mattered
_JOURNAL = "journal.log"
SEED = 0


@dataclass(frozen=True)
class Importance:
    """Share of the objective's variation by parameter, most first; or the reason why there is none."""

    shares: Mapping[str, float]
    trials: int
    reason: str = ""


def parameter_importance(study: Path) -> Importance | None:
    """The importances of the study at ``study``; None for what is no study with a journal of its own."""
    if not (study / STUDY_FILE).is_file() or not (study / _JOURNAL).is_file():
        return None
    try:
        return _compute(study)
    except (ValueError, RuntimeError, KeyError) as error:
        return Importance({}, 0, f"Optuna cannot compute it: {error}")


def _compute(study: Path) -> Importance:
    """PED-ANOVA (arXiv 2304.10255) of the complete trials: which parameters tell the best tenth from the rest."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(study / _JOURNAL)))
    found = optuna.load_study(study_name=str(read_yaml(study / STUDY_FILE)["name"]), storage=storage)
    done = [one for one in found.get_trials(deepcopy=False) if one.state == optuna.trial.TrialState.COMPLETE]
    if len(done) < FEWEST_TRIALS:
        return Importance({}, len(done), f"{len(done)} complete trials; at least {FEWEST_TRIALS} are needed")
    if len(found.directions) > 1:
        return Importance({}, len(done), "the study has several objectives")
    shares = get_param_importances(found, evaluator=PedAnovaImportanceEvaluator())
    return Importance({name: float(share) for name, share in shares.items()}, len(done))
