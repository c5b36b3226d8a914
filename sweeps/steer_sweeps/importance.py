"""How much each searched parameter mattered for each objective, by Optuna's own evaluators."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial

from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, TrialState
from steer_openrlhf.errors import ConfigError

from .export import objective_name
from .study import Study
from .winner import signs_of

FEWEST_TRIALS = 4
"""With fewer complete trials every answer would be an accident."""
SEED = 0
EVALUATORS: dict[str, Callable[[], BaseImportanceEvaluator]] = {
    "ped-anova": PedAnovaImportanceEvaluator,
    "fanova": partial(FanovaImportanceEvaluator, seed=SEED),
    "mdi": partial(MeanDecreaseImpurityImportanceEvaluator, seed=SEED),
}
"""PED-ANOVA (arXiv 2304.10255; conditional parameters: 2601.20800). fANOVA (Hutter et al. 2014) and mean decrease
impurity need scikit-learn, and see only the parameters that every trial has."""


def importances(study: Study, evaluator: str = "ped-anova") -> dict[str, dict[str, float]]:
    """Shares (their sum is 1) of every searched parameter, most first, by objective.

    Raises:
        ConfigError: fewer than :data:`FEWEST_TRIALS` complete trials, or the evaluator needs a package.
    """
    mistakes = []
    n = _complete(study)
    if n < FEWEST_TRIALS:
        mistakes.append(
            f"importance: {n} complete trials; at least {FEWEST_TRIALS} are needed, and tens to mean something"
        )
    if evaluator != "ped-anova" and importlib.util.find_spec("sklearn") is None:
        mistakes.append(f"importance: {evaluator} needs the package scikit-learn: pip install scikit-learn")
    if mistakes:
        raise ConfigError(mistakes)
    found = {}
    for place, (objective, sign) in enumerate(zip(study.sweep.all_objectives, signs_of(study.sweep), strict=True)):
        found[objective_name(objective)] = _shares(study, evaluator, partial(_badness, place, sign))
    return found


def _complete(study: Study) -> int:
    return sum(one.state == TrialState.COMPLETE for one in study.patience(study.searched.trials))


def _badness(place: int, sign: int, trial: FrozenTrial) -> float:
    """Lower is better, as PED-ANOVA wants it."""
    return -sign * float(trial.values[place])


def _shares(study: Study, evaluator: str, target: Callable[[FrozenTrial], float]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lower is better, and that few trials say little: both are said here
        try:
            shares = get_param_importances(study.searched.optuna, evaluator=EVALUATORS[evaluator](), target=target)
        except (ValueError, RuntimeError) as error:
            raise ConfigError([f"importance: {evaluator} cannot be computed: {error}"]) from None
    return {name: float(share) for name, share in sorted(shares.items(), key=lambda one: -one[1])}


def importance_lines(study: Study, evaluator: str = "ped-anova") -> list[str]:
    """The same in words."""
    n, lines = _complete(study), list[str]()
    for objective, shares in importances(study, evaluator).items():
        lines.append(f"importance for {objective} ({evaluator}, n = {n} trials):")
        lines += [f"  {share:5.1%}  {name}" for name, share in shares.items()]
    return lines
