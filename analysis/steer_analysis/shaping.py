"""What interventions would make of the probed tokens: their own functions, called on the probe. Needs torch, late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from steer_experiments.recipes import flatten, read_yaml
from steer_experiments.run_dir import RunDir
from steer_openrlhf.config import Config
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.registry import HOST_LOSSES, Intervention, interventions

from .probes import ProbeStep
from .runs import LOSS_KEY

if TYPE_CHECKING:
    from steer_openrlhf.tokens import Tokens
    from torch import Tensor

_AVAILABLE = frozenset({"old_entropy"})  # of an intervention's needs, what every probe has
_NETWORK = frozenset({"influence", "influence_head"})  # what a probe has when the model allowed it
_FIRST_UPDATE = {"updates": 1.0, "update": 0.0, "momentum": 0.0}
_STANDARD = ("steer", "uniform")


@dataclass(frozen=True)
class Candidate:
    """An intervention with a config, whose weight mass is shown under ``label``."""

    label: str
    intervention: Intervention
    config: Config


@dataclass(frozen=True)
class BaseLoss:
    """What of the run's OpenRLHF loss decides where its gradient stops, beside the clip range the probe has."""

    dual_clip: float | None = None
    sequence_level: bool = False


def plan_shaping(run: Path) -> tuple[list[Candidate], BaseLoss, list[str]]:
    """The interventions to show for a run: its own, ``steer`` as in the paper, ``uniform``; the loss below them; and,
    in words, why one is not shown."""
    flags, notes = _flags(run)
    method, base = str(flags.get(LOSS_KEY, "ppo")), flags.get("steer.base_loss")
    dual = flags.get("openrlhf.actor.dual_clip")
    loss = BaseLoss(None if dual is None else float(dual), "gspo" in (method, base))
    known = interventions()
    found = []
    if method in known:
        own = known[method]
        candidate, wrong = _candidate(own, _section(own, flags), "this run: ")
        found += [candidate] if candidate else []
        notes += [f"weight mass of this run's {method} is not shown: {wrong}"] if wrong else []
    elif method not in HOST_LOSSES:
        notes.append(f"weight mass of this run's {method} is not shown: no such intervention is installed here")
    for name in _STANDARD:
        candidate, _ = _candidate(known[name], {"estimator": "exact", "lambda_min": 0.7}, "")
        found += [candidate] if candidate else []
    return found, loss, notes


def _flags(run: Path) -> tuple[dict[str, Any], list[str]]:
    """The run's config, dotted; none, and why, where it cannot be read."""
    try:
        return flatten(read_yaml(RunDir(run).config)), []
    except ConfigError as error:
        return {}, [f"{error.mistakes[0]}; its own weights and dual clip are not known"]


def _section(one: Intervention, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The intervention's own flags in a resolved config, without those that are null."""
    prefix = f"{one.flag_prefix}."
    given = {key.removeprefix(prefix): value for key, value in flags.items() if key.startswith(prefix)}
    return {key: value for key, value in given.items() if key in one.config.model_fields and value is not None}


def _candidate(one: Intervention, flags: Mapping[str, Any], prefix: str) -> tuple[Candidate | None, str]:
    """The intervention with these flags, or why the probe cannot say what it does."""
    try:
        config = one.config.model_validate(dict(flags))
    except ValidationError as error:
        return None, f"its flags are not understood ({error.errors()[0]['msg']})"
    if lacking := sorted(one.needs(config) - _AVAILABLE - _NETWORK):
        return None, f"it needs {', '.join(lacking)}, which a probe does not hold"
    if one.own_loss:
        return None, "it changes the clip range or adds a loss, so its advantages are not its whole effect"
    words = ", ".join(f"{key} {value}" for key, value in flags.items())
    return Candidate(f"{prefix}{one.name}" + (f" ({words})" if words else ""), one, config), ""


def shape_steps(
    candidates: Sequence[Candidate], steps: Sequence[ProbeStep], loss: BaseLoss
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Candidate -> the advantages it gives the tokens of all steps, end to end; and, in words, why one has none.

    Summaries are of the probed tokens of one step, where a training takes those of an optimizer step or a micro-batch.
    """
    found, notes = {}, []
    for one in candidates:
        try:
            found[one.label] = np.concatenate([_shape(one, step, loss) for step in steps])
        except _NotShown as reason:
            notes.append(f"weight mass of {one.label} is not shown: {reason}")
    return found, notes


class _NotShown(Exception):
    """Why a probe cannot say what an intervention does."""


def _shape(one: Candidate, step: ProbeStep, loss: BaseLoss) -> NDArray[np.float32]:
    tokens, kept = _tokens(step, loss, one.intervention.needs(one.config) & _NETWORK)
    signal, summarize, control, shape = (
        one.intervention.function(name) for name in ("signal", "summarize", "control", "shape")
    )
    assert shape is not None, f"{one.intervention.maths} has no function shape"
    summary = summarize(signal(tokens, one.config), one.config) if signal and summarize else None
    if control and control(dict(_FIRST_UPDATE), summary, one.config)[1] is not summary:
        raise _NotShown("its strength is controlled during the training, and a probe does not hold that state")
    shaped: NDArray[np.float32] = shape(tokens, summary, one.config).advantages_BT.float().numpy()
    return shaped[kept]


def _tokens(step: ProbeStep, loss: BaseLoss, network: frozenset[str]) -> tuple["Tokens", NDArray[np.bool_]]:
    """The step as an intervention sees it: one row a sequence, right-padded; and where its tokens are, in order."""
    import torch
    from steer_openrlhf.tokens import Clip, Tokens

    names, row, lengths = np.unique(step.sequence, return_inverse=True, return_counts=True)
    place = np.arange(row.size) - (np.cumsum(lengths) - lengths)[row]
    mask = np.zeros((names.size, int(lengths.max())), dtype=bool)
    mask[row, place] = True

    def padded(values: NDArray[np.float32]) -> torch.Tensor:
        whole = np.zeros(mask.shape, dtype=np.float32)
        whole[mask] = values
        return torch.from_numpy(whole)

    view = Tokens(
        log_probs_BT=padded(step.columns["log_prob_before"]),
        old_log_probs_BT=padded(step.columns["old_log_probs"]),
        advantages_BT=padded(step.columns["advantages"]),
        mask_BT=torch.from_numpy(mask).float(),
        entropy_BT=padded(step.columns["entropy_before"]),
        collision_BT=padded(step.columns["collision_before"]),
        clip=Clip(*step.clip, loss.dual_clip, loss.sequence_level),
        old_entropy_BT=padded(step.columns["entropy_before"]),
    )
    for name in network:
        if name not in step.omega:
            raise _NotShown(f"step {step.step} has no {name}")
        view = replace(view, influence_BT=_score(view, padded(step.omega[name])))
    return view, mask


def _score(view: "Tokens", omega_BT: "Tensor") -> "Tensor":
    """``Tokens.influence_BT``, of which the probe has ``omega = I r A score``; 0 where that says nothing about it."""
    scale_BT = view.ratio_BT() * view.advantages_BT
    silent_BT = (scale_BT == 0) | (omega_BT == 0)
    return (omega_BT / scale_BT).masked_fill(silent_BT, 0.0)
