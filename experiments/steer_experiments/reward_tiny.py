"""OpenRLHF reward file of the tiny task (`--reward.remote_url .../reward_tiny.py`): the integer after "#"."""

from steer_experiments.base_model import SPECIALS
from steer_experiments.grading import IntegerGrader
from steer_experiments.rewarding import make_reward_func

reward_func = make_reward_func(IntegerGrader(), SPECIALS)
