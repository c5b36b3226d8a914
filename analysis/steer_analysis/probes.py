"""Probe files of a run: the same response tokens measured before and after the updates of one rollout step.

``<run>/probe/step<NNNNNN>.rank<R>.npz``, one for each probed step and data-parallel rank, read without pickle. Ranks of
a step are laid end to end; padding is dropped. Shape letter: N response tokens of a step. Entropies in nats.
"""

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from steer_openrlhf.errors import ConfigError

Floats32 = NDArray[np.float32]
Arrays = Mapping[str, NDArray[np.generic]]

FOLDER = "probe"
PREFIX = "omega_"
ESTIMATORS = ("exact", "paper", "reference", "influence_head", "influence")
"""Known estimators in the order they are shown; others that a file has come after them."""
COLUMNS = (
    *("advantages", "old_log_probs", "log_prob_before", "entropy_before", "collision_before"),
    *("log_prob_after", "entropy_after"),
)
_SCALARS = ("clip_low", "clip_high", "learning_rate", "step", "updates")
_NAME = re.compile(r"step(\d+)\.rank(\d+)\.npz")
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ProbeStep:
    """The response tokens of one probed step, of all ranks."""

    step: int
    updates: int
    learning_rate: float
    clip: tuple[float, float]
    """Low and high epsilon of the PPO clip range."""
    columns: Mapping[str, Floats32]
    """:data:`COLUMNS`, each ``[N]``; a value that was not finite stays so."""
    omega: Mapping[str, Floats32]
    """Estimator -> Omega ``[N]`` (> 0 raises entropy, nats per unit step); NaN where a rank's file lacks it."""
    sequence: NDArray[np.int64]
    """The sequence of each token, counted from 0 within the step, ascending ``[N]``."""

    @property
    def change(self) -> Floats32:
        """Measured change of entropy at each token, nats ``[N]``."""
        return self.columns["entropy_after"] - self.columns["entropy_before"]


@dataclass(frozen=True)
class Probes:
    """What a run measured, by step, and what could not be read."""

    steps: Sequence[ProbeStep]
    problems: Sequence[str]

    @property
    def estimators(self) -> list[str]:
        """Every estimator some step has, in the order they are shown."""
        found = {name for step in self.steps for name in step.omega}
        return [name for name in ESTIMATORS if name in found] + sorted(found - set(ESTIMATORS))


@dataclass(frozen=True)
class _File:
    step: int
    rank: int
    arrays: Arrays


def probe_files(run: Path) -> list[Path]:
    """The probe files of a run by step and rank. Raises :class:`ConfigError` when there are none."""
    numbered = [(_NAME.fullmatch(path.name), path) for path in (run / FOLDER).glob("step*.npz")]
    found = sorted((int(name[1]), int(name[2]), path) for name, path in numbered if name)
    if not found:
        wrong = "has no probe files" if (run / FOLDER).is_dir() else "does not exist"
        raise ConfigError([f"{run / FOLDER}: {wrong}; train with --steer.probe.every N (a recipe: steer.probe.every)"])
    return [path for _, _, path in found]


def load_probes(run: Path) -> Probes:
    """Every probe of a run. A damaged file is a problem, named, and the others are read.

    Raises:
        ConfigError: no probe file, or none that can be read; the message has the reason for each.
    """
    files: dict[int, list[_File]] = {}
    problems: list[str] = []
    for path in probe_files(run):
        try:
            one = _read(path)
        except _DAMAGE as error:
            problems.append(f"{FOLDER}/{path.name}: {_reason(error)}; left out")
        else:
            files.setdefault(one.step, []).append(one)
    steps = [_join(step, parts, problems) for step, parts in files.items()]
    steps = [step for step in steps if step.sequence.size]
    if not steps:
        raise ConfigError([f"{run}: no probe file can be used", *problems])
    problems += _uneven(files)
    return Probes(steps, problems)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError | ValueError) and not isinstance(error, UnicodeDecodeError):
        return str(error.args[0]) if error.args else type(error).__name__
    return f"cannot be read ({type(error).__name__}: {error})"


def _read(path: Path) -> _File:
    """One file, checked. Raises one of ``_DAMAGE`` with what is wrong."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if missing := [key for key in ("mask", *COLUMNS, *_SCALARS) if key not in arrays]:
        raise ValueError(f"has no {', '.join(missing)}")
    shape = arrays["mask"].shape
    tokens = ["mask", *COLUMNS, *(key for key in arrays if key.startswith(PREFIX))]
    wrong = [f"{key} has shape {arrays[key].shape}" for key in tokens if arrays[key].shape != shape]
    wrong += [f"{key} has shape {arrays[key].shape}, must be ()" for key in _SCALARS if arrays[key].shape != ()]
    wrong += [f"{key} holds {arrays[key].dtype}, no numbers" for key in arrays if arrays[key].dtype.kind not in "fiub"]
    if len(shape) != 2 or wrong:
        raise ValueError("; ".join([f"mask has shape {shape}, every token array must have this [B, T]", *wrong]))
    if not np.isin(arrays["mask"], (0, 1)).all():
        raise ValueError("mask has values other than 0 and 1")
    if int(arrays["step"]) != int(name[1]):
        raise ValueError(f"holds step {int(arrays['step'])}: renamed, or written by something else")
    return _File(int(name[1]), int(name[2]), arrays)


def _join(step: int, parts: Sequence[_File], problems: list[str]) -> ProbeStep:
    """The ranks of a step, end to end, without padding."""
    masks = [part.arrays["mask"].astype(bool) for part in parts]
    names = {key.removeprefix(PREFIX) for part in parts for key in part.arrays if key.startswith(PREFIX)}
    for part in parts:
        if absent := sorted(name for name in names if PREFIX + name not in part.arrays):
            problems.append(f"step {step}, rank {part.rank}: has no {', '.join(absent)}, other ranks have")
        if any(part.arrays[key] != parts[0].arrays[key] for key in _SCALARS):
            problems.append(
                f"step {step}: clip range, learning rate or updates differ between ranks; the first is used"
            )
    if not any(mask.any() for mask in masks):
        problems.append(f"step {step}: has no response tokens; left out")

    def column(key: str) -> Floats32:
        nan = np.float32(np.nan)
        values = [part.arrays.get(key, np.full(mask.shape, nan))[mask] for part, mask in zip(parts, masks, strict=True)]
        return np.concatenate(values).astype(np.float32)

    rows = np.cumsum([0, *(mask.shape[0] for mask in masks)])
    sequence = np.concatenate([first + np.nonzero(mask)[0] for first, mask in zip(rows[:-1], masks, strict=True)])
    scalars = parts[0].arrays
    return ProbeStep(
        step=step,
        updates=int(scalars["updates"]),
        learning_rate=float(scalars["learning_rate"]),
        clip=(float(scalars["clip_low"]), float(scalars["clip_high"])),
        columns={key: column(key) for key in COLUMNS},
        omega={name: column(PREFIX + name) for name in names},
        sequence=sequence.astype(np.int64),
    )


def _uneven(files: Mapping[int, Sequence[_File]]) -> list[str]:
    """Steps without a file of every rank (its tokens are then fewer than in other steps)."""
    ranks = {part.rank for parts in files.values() for part in parts}
    lacking = {step: sorted(ranks - {part.rank for part in parts}) for step, parts in files.items()}
    return [f"step {step}: no file of rank {', '.join(map(str, gone))}" for step, gone in lacking.items() if gone]
