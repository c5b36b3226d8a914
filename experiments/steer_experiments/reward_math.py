"""OpenRLHF reward file for mathematics: math-verify in killable worker processes."""

import os

from steer_experiments.grading import MathGrader
from steer_experiments.rewarding import make_reward_func

# Tokens that end or pad a response in the chat formats of Qwen, Llama 2 and 3, Gemma and DeepSeek.
SPECIALS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"),
    *("</s>", "<eos>", "<pad>", "<｜end▁of▁sentence｜>"),
)

WORKERS = min(16, max(2, (os.cpu_count() or 2) // 4))  # OpenRLHF grades each sample of a rollout in a thread of its own

reward_func = make_reward_func(MathGrader(workers=WORKERS), SPECIALS)
