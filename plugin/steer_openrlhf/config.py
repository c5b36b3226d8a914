"""Typed, frozen configuration of the plugin. Every field becomes a flag ``--<prefix>.<field>`` (:mod:`.hostargs`).

Light on purpose: importing it loads no torch, so a mistake is reported in milliseconds and before Ray starts.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAPER_LAMBDA_MIN = 0.7  # arXiv 2510.10150v4, main experiments; useful range .6-.8
QUANTILE = 0.99
LINEAR_LAMBDA_MIN, LINEAR_LAMBDA_MAX = 0.8, 1.2  # the authors' released scripts


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

    estimator: Literal["exact", "paper", "reference"] = Field(
        "exact", description="how Omega is estimated: exact softmax step, the paper's Eq. 6-8, or the released code"
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

    def needs(self) -> frozenset[str]:
        """See :data:`steer_openrlhf.registry.NEEDS`."""
        return frozenset()

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
                f"side = {given['side']} needs a signed estimator (exact, paper); reference knows only |Omega|"
            )
        return wrong

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        if self.weight == "linear":
            self._default("lambda_min", LINEAR_LAMBDA_MIN)
            self._default("lambda_max", LINEAR_LAMBDA_MAX)
        elif self.k is None:
            self._default("lambda_min", PAPER_LAMBDA_MIN)
        if self.normalizer == "quantile":
            self._default("quantile", QUANTILE)
        return self

    def _default(self, field: str, value: float) -> None:
        if getattr(self, field) is None:
            object.__setattr__(self, field, value)  # frozen to everybody else; this is still construction


class RayConfig(Config):
    """The Ray cluster the launcher connects to or starts (``ray.init``)."""

    address: str | None = Field(None, description="as ray.init; 'local' starts a private cluster of this process")
    num_cpus: int | None = Field(None, ge=1, description="CPUs Ray may hand out, when the launcher starts Ray")
    num_gpus: int | None = Field(
        None, ge=0, description="GPU slots; without CUDA, OpenRLHF's actors are placed on these"
    )
    temp_dir: str | None = Field(None, max_length=60, description="Ray's directory; short, for its unix sockets")
    object_store_memory: int | None = Field(None, ge=80 * 1024**2, description="bytes of the object store")


class LaunchConfig(Config):
    """What the drop-in itself needs beside OpenRLHF's flags."""

    run_dir: str | None = Field(None, description="where metrics.jsonl and host_args.json are written")
    base_loss: Literal["ppo", "gspo"] = Field("ppo", description="OpenRLHF's policy loss an intervention shapes")
    chunk_tokens: int = Field(1024, ge=1, description="tokens whose vocabulary row is held at once for the statistics")
    ray: RayConfig = Field(default_factory=lambda: RayConfig.model_validate({}))
