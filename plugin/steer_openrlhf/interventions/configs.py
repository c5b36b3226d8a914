"""Configs of the interventions beside STEER. Light: no torch. Sources and formulas are with the functions."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..config import SUMMABLE, Config


class EntropyAdvantageConfig(Config):
    """arXiv 2506.14758: :func:`.advantages.shape_entropy_advantage`."""

    alpha: float = Field(0.4, ge=0, description="advantage added per nat of the token's entropy; 0 switches it off")
    kappa: float = Field(2.0, gt=1, description="the addition is at most |A|/kappa, so the sign of A stays")


class WReinforceConfig(Config):
    """arXiv 2506.01347: :func:`.advantages.shape_w_reinforce`. PSR is 1 and 0, NSR is 0 and 1."""

    lambda_positive: float = Field(0.1, ge=0, description="weight of tokens with A > 0")
    lambda_negative: float = Field(1.0, ge=0, description="weight of tokens with A < 0")

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        if number(given, "lambda_positive", 0.1) == 0 and number(given, "lambda_negative", 1.0) == 0:
            return ["lambda_positive = 0 and lambda_negative = 0: nothing would be trained; give one above 0"]
        return []


class StareConfig(Config):
    """arXiv 2606.19236: :func:`.advantages.shape_stare`. Variant O1; C2 is ``weight_negative`` 0.9."""

    target_entropy: float = Field(
        0.3, ge=0, description="nats; acts in steps whose mean entropy is below; 0 never acts"
    )
    share: float = Field(0.1, gt=0, le=1, description="share of the tokens of a sign, those of largest surprisal")
    weight: float = Field(1.1, ge=1, description="weight of these tokens where A > 0; 1 switches it off")
    weight_negative: float = Field(1.0, gt=0, le=1, description="weight of these tokens where A < 0")


class ClipCovConfig(Config):
    """arXiv 2505.22617: :func:`.covariance.shape_clip_cov`."""

    ratio: float = Field(
        2e-4, gt=0, le=1, description="tokens to drop, as a share of all response tokens; at least one"
    )
    lb: float = Field(1.0, description="only tokens whose covariance is above this")
    ub: float = Field(5.0, description="only tokens whose covariance is below this")

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        return _ordered(given, lb=1.0, ub=5.0)


class KlCovConfig(Config):
    """arXiv 2505.22617: :func:`.covariance.shape_kl_cov`."""

    ratio: float = Field(2e-4, gt=0, le=1, description="tokens under the penalty, as a share of all; at least one")
    beta: float = Field(1.0, ge=0, description="coefficient of |log pi - log pi_old|; 0 leaves PPO without clipping")


class ForkingTokensConfig(Config):
    """arXiv 2506.01939: :func:`.masks.shape_forking_tokens`."""

    keep: float = Field(0.2, gt=0, le=1, description="share of response tokens trained, those of largest entropy")


class ErcConfig(Config):
    """arXiv 2512.05591: :func:`.masks.shape_erc`."""

    low: float = Field(0.95, ge=0, description="no gradient where H / H_old is not above this")
    high: float = Field(1.05, gt=0, description="no gradient where H / H_old is not below this")

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> list[str]:
        return _ordered(given, low=0.95, high=1.05)


Side = Literal["negative", "lowering", "all"]
SIDE = "outliers masked: A < 0 that lower entropy (released code), any that lower entropy, or all"


class ClipBConfig(Config):
    """arXiv 2602.03392: :func:`.discriminator.shape_clip_b`."""

    mu: float = Field(2.5, gt=0, description="outlier: this many standard deviations from the batch mean; useful 2-3")
    side: Side = Field("negative", description=SIDE)
    max_share: float | None = Field(None, gt=0, le=1, description="mask at most this share of all response tokens")


class ClipVConfig(Config):
    """arXiv 2602.03392: :func:`.discriminator.shape_clip_v`."""

    mu: float = Field(8.5, gt=0, description="outlier: this many standard deviations from 0; useful 7.5-8.5")
    side: Side = Field("negative", description=SIDE)
    max_share: float | None = Field(1e-4, gt=0, le=1, description="mask at most this share of all response tokens")


class OpefoConfig(Config):
    """arXiv 2605.11491: :func:`.flow.shape_opefo`."""

    estimator: Literal["exact", "paper", "influence", "influence_head"] = Field(
        "exact", description="how the entropy change of a token is estimated, as --steer.estimator"
    )

    def needs(self) -> frozenset[str]:
        """See :data:`steer_openrlhf.registry.NEEDS`."""
        return frozenset({self.estimator} & set(SUMMABLE))


class DcpoConfig(Config):
    """arXiv 2509.02333: :func:`.clipping.shape_dcpo`. Replaces ``--actor.eps_clip_low_high``."""

    eps_low: float = Field(0.16, ge=0, description="width of the lower bound; it is never below 0.5")
    eps_high: float = Field(0.2, ge=0, description="width of the upper bound")
    r_max: float = Field(10.0, gt=1, description="largest upper bound, reached by rare tokens")


class CeGppoConfig(Config):
    """arXiv 2509.20712: :func:`.clipping.shape_ce_gppo`."""

    beta1: float = Field(0.75, ge=0, description="gradient kept where A < 0 and r < 1 - eps_low; 0.5 in the paper too")
    beta2: float = Field(1.0, ge=0, description="gradient kept where A > 0 and r > 1 + eps_high")


class EntropicConfig(Config):
    """arXiv 2511.15248: :func:`.controllers.shape_entropic`."""

    target_entropy: float = Field(0.1, ge=0, description="nats; the mean entropy the controller holds")
    kp: float = Field(1.0, ge=0, description="output per nat of error")
    ki: float = Field(0.01, ge=0, description="output per nat of error summed over all optimizer steps")
    limit: float = Field(1.0, gt=0, description="largest output, either sign")
    high_prob: float = Field(0.95, gt=0, lt=1, description="acts on tokens of a probability above this")


class PositiveReweightConfig(Config):
    """arXiv 2511.05993: :func:`.controllers.shape_positive_reweight`."""

    target_entropy: float = Field(0.2, ge=0, description="nats; below it the weight of A > 0 falls, else it rises")
    delta: float = Field(0.05, ge=0, le=1, description="how much the weight moves in a rollout")
    initial: float = Field(0.0, ge=0, le=1, description="weight in the first rollout")


def number(given: Mapping[str, Any], name: str, default: float) -> float | None:
    """The value as a float; None when it is not a number, which is its field's own mistake."""
    try:
        return float(given.get(name, default))
    except (TypeError, ValueError):
        return None


def _ordered(given: Mapping[str, Any], **pair: float) -> list[str]:
    """The mistake of a lower bound that is not below its upper bound; ``pair`` is both names with their defaults."""
    (low, low_default), (high, high_default) = pair.items()
    bottom, top = number(given, low, low_default), number(given, high, high_default)
    if bottom is not None and top is not None and bottom >= top:
        return [f"{low} = {bottom} must be smaller than {high} = {top}"]
    return []
