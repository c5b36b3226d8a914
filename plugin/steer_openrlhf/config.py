"""Typed, frozen configuration of the plugin. Every field becomes a flag ``--<prefix>.<field>`` (:mod:`.hostargs`).

Light on purpose: importing it loads no torch, so a mistake is reported in milliseconds and before Ray starts.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAPER_LAMBDA_MIN = 0.7  # arXiv 2510.10150v4, main experiments; useful range .6-.8
QUANTILE = 0.99
LINEAR_LAMBDA_MIN, LINEAR_LAMBDA_MAX = 0.8, 1.2  # the authors' released scripts
BAND_MEMORY, BAND_WARMUP = 0.9, 3  # ours: ten rollouts of calibration are remembered, three come before control
SUMMABLE = ("influence", "influence_head")  # their sum over a batch predicts its entropy change (METHODS 1b)


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, no infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        """Every combination in ``given`` (field -> value) that makes no sense, as sentences; none here."""
        return []

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        if wrong := self.conflicts({name: getattr(self, name) for name in self.model_fields_set}):
            raise ValueError("; ".join(wrong))
        return self


class SteerConfig(Config):
    """How STEER turns the estimated entropy change Omega of a token into a weight (arXiv 2510.10150; METHODS 1-2)."""

    estimator: Literal["exact", "paper", "reference", "influence", "influence_head"] = Field(
        "exact",
        description="how Omega is estimated: exact softmax step, the paper's Eq. 6-8, the released code, or a token's "
        "influence on the mean entropy through the whole network or its language-model head",
    )
    weight: Literal["exp", "linear"] = Field("exp", description="exp(-k|Omega|), or linear between lambda_max and min")
    k: float | None = Field(None, gt=0, description="decay per unit of |Omega|, absolute; give k or lambda_min")
    lambda_min: float | None = Field(
        None, gt=0, le=1, description=f"weight of the token at the normaliser, (0, 1]; default {PAPER_LAMBDA_MIN}"
    )
    lambda_max: float | None = Field(
        None, ge=1, description=f"linear only: largest weight; default {LINEAR_LAMBDA_MAX}"
    )
    normalizer: Literal["max", "quantile"] = Field("max", description="what |Omega| is measured against for lambda_min")
    quantile: float | None = Field(
        None, gt=0, le=1, description=f"which quantile of |Omega|, for normalizer quantile; default {QUANTILE}"
    )
    norm_floor: float = Field(0.0, ge=0, description="smallest normaliser; 0.02 in the released code, 0 in the paper")
    scope: Literal["global", "microbatch"] = Field(
        "global", description="tokens behind the normaliser: the optimizer step over all ranks, or one micro-batch"
    )
    side: Literal["both", "falling", "rising"] = Field(
        "both", description="damp tokens of either sign, only those that lower entropy, or only those that raise it"
    )

    band: tuple[float, float] | None = Field(
        None, description="LOW HIGH: where the change of mean entropy per rollout step shall stay, nats per token"
    )
    entropy_floor: float | None = Field(
        None, ge=0, description="nats; below it entropy may not fall: the band's low end becomes max(LOW, 0)"
    )
    entropy_ceiling: float | None = Field(
        None, ge=0, description="nats; above it entropy may not rise: the band's high end becomes min(HIGH, 0)"
    )
    band_memory: float | None = Field(
        None, gt=0, le=1, description=f"decay per rollout of the band's calibration; default {BAND_MEMORY}"
    )
    band_warmup: int | None = Field(
        None, ge=1, description=f"measured rollouts before the band damps anything; default {BAND_WARMUP}"
    )

    def needs(self) -> frozenset[str]:
        """See :data:`steer_openrlhf.registry.NEEDS`."""
        return frozenset({"old_entropy"} if self.estimator == "reference" else {self.estimator} & set(SUMMABLE))

    @property
    def leveled(self) -> bool:
        """Whether the band depends on the mean entropy of the step."""
        return self.entropy_floor is not None or self.entropy_ceiling is not None

    @property
    def banded(self) -> bool:
        """Whether damping follows the entropy band (:mod:`.band`) instead of a fixed k or lambda_min."""
        return self.band is not None or self.leveled

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        k, lambda_min, weight = given.get("k"), given.get("lambda_min"), given.get("weight", "exp")
        wrong = []
        if k is not None and lambda_min is not None:
            wrong.append(
                f"k = {k} and lambda_min = {lambda_min} are both given: k is the absolute decay, lambda_min derives it "
                "from the normaliser; give one"
            )
        if weight == "linear" and k is not None:
            wrong.append(f"k = {k} has no meaning for weight linear: give lambda_min and lambda_max")
        if weight == "exp" and given.get("lambda_max") is not None:
            wrong.append(f"lambda_max = {given['lambda_max']} has no meaning for weight exp, whose largest weight is 1")
        if given.get("quantile") is not None and given.get("normalizer", "max") != "quantile":
            wrong.append(f"quantile = {given['quantile']} has no meaning for normalizer max: give normalizer quantile")
        if given.get("estimator") == "reference" and given.get("side", "both") != "both":
            wrong.append(
                f"side = {given['side']} needs a signed estimator (exact, paper, {', '.join(SUMMABLE)}); reference "
                "knows only |Omega|"
            )
        return wrong + _band_conflicts(given)

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        if self.weight == "linear":
            self._default("lambda_min", LINEAR_LAMBDA_MIN)
            self._default("lambda_max", LINEAR_LAMBDA_MAX)
        elif self.k is None:
            self._default("lambda_min", PAPER_LAMBDA_MIN)
        if self.normalizer == "quantile":
            self._default("quantile", QUANTILE)
        if self.banded:
            self._default("band_memory", BAND_MEMORY)
            self._default("band_warmup", BAND_WARMUP)
        return self

    def _default(self, field: str, value: float) -> None:
        if getattr(self, field) is None:
            object.__setattr__(self, field, value)  # frozen to everybody else; this is still construction


def _band_conflicts(given: Mapping[str, Any]) -> list[str]:
    """What an entropy band, floor or ceiling cannot go with; ``given`` may still be what somebody typed."""
    asked = [name for name in ("band", "entropy_floor", "entropy_ceiling") if given.get(name) is not None]
    if not asked:
        return [
            f"{name} = {given[name]} has no effect without band, entropy_floor or entropy_ceiling: give one of them"
            for name in ("band_memory", "band_warmup")
            if given.get(name) is not None
        ]
    wrong = []
    if (estimator := given.get("estimator", "exact")) not in SUMMABLE:
        wrong.append(
            f"estimator = {estimator} cannot stand behind {', '.join(asked)}: its sum over a batch has the wrong sign "
            f"on a real network; allowed: {', '.join(SUMMABLE)}"
        )
    if given.get("k") is not None:
        wrong.append(f"k = {given['k']} has no meaning with {asked[0]}, which finds the decay; give lambda_min instead")
    for name, only, reason in (
        ("side", "both", "it damps the side that pushes out of it"),
        ("scope", "global", "it is a sum over the whole optimizer step"),
        ("weight", "exp", "it only damps"),
    ):
        if given.get(name, only) != only:
            wrong.append(f"{name} = {given[name]} does not go with {asked[0]}: {reason}; allowed: {only}")
    return wrong + _empty_bands(given)


def _empty_bands(given: Mapping[str, Any]) -> list[str]:
    """Limits that leave no entropy change, or no entropy, allowed."""
    ends = given.get("band")
    low, high = (_number(end) for end in ends) if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
    floor, ceiling = _number(given.get("entropy_floor")), _number(given.get("entropy_ceiling"))
    wrong = []
    if low is not None and high is not None and low >= high:
        wrong.append(f"band = {low} {high}: is empty; LOW must be smaller than HIGH")
    if floor is not None and ceiling is not None and floor >= ceiling:
        wrong.append(f"entropy_floor = {floor} must be smaller than entropy_ceiling = {ceiling}")
    if floor is not None and high is not None and high <= 0:
        wrong.append(
            f"band ends at {high}: below entropy_floor = {floor} nothing would be allowed; give a HIGH above 0"
        )
    if ceiling is not None and low is not None and low >= 0:
        wrong.append(
            f"band begins at {low}: above entropy_ceiling = {ceiling} nothing would be allowed; give a LOW below 0"
        )
    return wrong


def _number(value: Any) -> float | None:
    """The value as a float, None when it is not given or no number (which is its field's own mistake)."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


class RayConfig(Config):
    """The Ray cluster the launcher connects to or starts (``ray.init``)."""

    address: str | None = Field(None, description="as ray.init; 'local' starts a private cluster of this process")
    num_cpus: int | None = Field(None, ge=1, description="CPUs Ray may hand out, when the launcher starts Ray")
    num_gpus: int | None = Field(
        None, ge=0, description="GPU slots; without CUDA, OpenRLHF's actors are placed on these"
    )
    temp_dir: str | None = Field(None, max_length=60, description="Ray's directory; short, for its unix sockets")
    object_store_memory: int | None = Field(None, ge=80 * 1024**2, description="bytes of the object store")


class ProbeConfig(Config):
    """Ground truth: entropies of some sequences of a rollout before and after its updates (:mod:`.probe`)."""

    every: int = Field(0, ge=0, description="write probe/ each so many rollout steps, with every estimator; 0 never")
    sequences: int = Field(64, ge=1, description="sequences a rank measures before and after a rollout's updates")


class EntropyBonusConfig(Config):
    """OpenRLHF's entropy bonus with a coefficient that adapts (Skywork-OR1, arXiv 2505.22312)."""

    target: float | None = Field(
        None, gt=0, description="nats: raise --actor.entropy_coef below it, lower it above; not given: it stays fixed"
    )
    delta: float = Field(1e-4, gt=0, description="how much the coefficient moves in an optimizer step")
    maximum: float = Field(5e-3, gt=0, description="largest coefficient")


class LaunchConfig(Config):
    """What the drop-in itself needs beside OpenRLHF's flags."""

    run_dir: str | None = Field(None, description="where metrics.jsonl and host_args.json are written")
    base_loss: Literal["ppo", "gspo"] = Field("ppo", description="OpenRLHF's policy loss an intervention shapes")
    chunk_tokens: int = Field(1024, ge=1, description="tokens whose vocabulary row is held at once for the statistics")
    probe: ProbeConfig = Field(default_factory=lambda: ProbeConfig.model_validate({}))
    entropy_bonus: EntropyBonusConfig = Field(default_factory=lambda: EntropyBonusConfig.model_validate({}))
    ray: RayConfig = Field(default_factory=lambda: RayConfig.model_validate({}))
