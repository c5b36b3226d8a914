"""Graded answers of the tiny base model to its own questions, as one batch. Every draw is seeded."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from steer_experiments.base_model import SPECIALS
from steer_experiments.cache import cache_root
from steer_experiments.config import load_recipe
from steer_experiments.grading import IntegerGrader
from steer_experiments.prepare import prepare
from steer_experiments.rewarding import response_of
from torch import Tensor

RECIPE = Path(__file__).parents[1] / "experiments" / "recipes" / "tiny" / "base.yaml"
SAMPLES, NEW_TOKENS = 8, 24  # as the recipe has them


class Batch(NamedTuple):
    """Answers with their advantages: prompts padded on the left, response tokens in the last columns."""

    sequences_BS: Tensor
    attention_BS: Tensor
    mask_BT: Tensor
    advantages_BT: Tensor

    @property
    def labels_N(self) -> Tensor:
        return self.sequences_BS[:, -self.mask_BT.shape[1] :][self.mask_BT]

    @property
    def advantages_N(self) -> Tensor:
        return self.advantages_BT[self.mask_BT].double()

    @property
    def answer_N(self) -> Tensor:
        """Which answer each token is of."""
        return self.mask_BT.nonzero()[:, 0]

    def trimmed(self, parts: int) -> "list[Batch]":
        """The same answers in parts of like length, without the columns that are padding in a whole part."""
        order = self.attention_BS.sum(1).argsort(stable=True)
        return [Batch(*(whole[rows] for whole in self))._without_padding() for rows in order.chunk(parts)]

    def _without_padding(self) -> "Batch":
        used_S = self.attention_BS.any(0).nonzero()
        first, last = int(used_S.min()), int(used_S.max()) + 1
        columns = self.mask_BT.shape[1] - (self.attention_BS.shape[1] - last)
        whole, actions = slice(first, last), slice(columns)
        return Batch(
            self.sequences_BS[:, whole], self.attention_BS[:, whole], self.mask_BT[:, actions],
            self.advantages_BT[:, actions],
        )  # fmt: skip

    def inputs(self) -> dict[str, Any]:
        positions_BS = (self.attention_BS.long().cumsum(-1) - 1).masked_fill(self.attention_BS == 0, 1)
        return {
            "input_ids": self.sequences_BS,
            "attention_mask": self.attention_BS,
            "position_ids": positions_BS,
            "use_cache": False,
        }

    def responses(self, whole_BSx: Tensor) -> Tensor:
        """Of anything with one entry a position (logits, hidden states): those that predict the response tokens."""
        return whole_BSx[:, -self.mask_BT.shape[1] - 1 : -1][self.mask_BT]


@dataclass(frozen=True)
class Task:
    """The tiny model (float32), its tokenizer and the training questions."""

    model: Any
    tokenizer: Any
    questions: list[dict[str, str]]


def tiny_task() -> Task:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepared = prepare(load_recipe(RECIPE), cache_root())
    model = AutoModelForCausalLM.from_pretrained(prepared.model, attn_implementation="sdpa").eval()
    return Task(model, AutoTokenizer.from_pretrained(prepared.model), prepared.task.rows("train"))


@torch.no_grad()
def sampled(task: Task, model: Any, prompts: int, seed: int) -> Batch:
    """:data:`SAMPLES` answers at temperature 1 to each of ``prompts`` questions, graded."""
    questions = [each for each in random.Random(seed).sample(task.questions, prompts) for _ in range(SAMPLES)]
    asked = task.tokenizer(
        [each["input"] for each in questions], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    torch.manual_seed(seed)
    sequences_BS = model.generate(**asked, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=NEW_TOKENS)
    answers_BT = sequences_BS[:, asked["input_ids"].shape[1] :]
    ended_BT = (answers_BT == task.tokenizer.eos_token_id).long()
    mask_BT = ended_BT.cumsum(1) - ended_BT == 0  # up to and including the first end
    attention_BS = torch.cat([asked["attention_mask"], mask_BT.long()], dim=1)
    rewards_B = torch.tensor([reward(task, each, row) for each, row in zip(questions, answers_BT, strict=True)])
    return Batch(sequences_BS, attention_BS, mask_BT, group_norm(rewards_B)[:, None].expand(mask_BT.shape))


def reward(task: Task, question: Mapping[str, str], answer_T: Tensor) -> float:
    query = question["input"] + task.tokenizer.decode(answer_T)
    response = response_of(query, question["input"], SPECIALS)
    assert response is not None, query
    return float(IntegerGrader().grade(response, question["label"]).state == "correct")


def group_norm(rewards_B: Tensor) -> Tensor:
    """OpenRLHF's ``group_norm`` (experience_maker.py, 0.11.2), over the answers to one question."""
    grouped = rewards_B.view(-1, SAMPLES)
    return ((grouped - grouped.mean(-1, keepdim=True)) / (grouped.std(-1, keepdim=True) + 1e-9)).flatten()
