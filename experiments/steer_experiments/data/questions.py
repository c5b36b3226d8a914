r"""How a question is put, and when two questions are the same. Pure functions on text.

A *problem* is the bare question. A *prompt* is the problem with an instruction around it, before any chat template.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from steer_openrlhf.errors import ConfigError, suggest

HOLE = "{problem}"
AS_IN_FILE = "file"
"""The prompt stays what the file has; only files of the verl layout have one."""
TEMPLATES: dict[str, str] = {
    "plain": HOLE,
    # verl's examples/data_preprocess for MATH and GSM8K
    "boxed": HOLE + r" Let's think step by step and output the final answer within \boxed{}.",
    # DAPO (2503.14476): the released AIME and AMC files of STEER
    "dapo": "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    + HOLE
    + '\n\nRemember to put your answer on its own line after "Answer:".',
    # the released DAPO-Math-17k file of STEER
    "dapo_boxed": "Solve the following math problem step by step. The last line of your response should be of the form "
    r"\boxed{Answer} where Answer is the answer to the problem."
    + "\n\n"
    + HOLE
    + "\n\n"
    + r"Remember to put your answer in \boxed{...} format on its own line.",
}
"""Known ways to put a question, by name; the text around the problem is taken off when a file has it."""

_LOST_DOLLARS = TEMPLATES["dapo"].replace("$Answer", "")  # a shell ate them in the released gsm8k_test.parquet
_CHINESE = re.compile(
    r"\s*让我们一步一步地思考。请以[“\"]Answer: \\boxed\{<final_answer>\}[”\"]的格式输出最终答案。[^\n]*$"
)
CHINESE = "chinese"
_LAYOUT = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right|displaystyle)\b|[\s$~]")
_WORD_TEXT = r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+|\d+"
_WORD = re.compile(_WORD_TEXT)
_WORD_OR_SIGN = re.compile(rf"{_WORD_TEXT}|[-+*/=<>^|!]")


@dataclass(frozen=True)
class Problem:
    """One question and its answer. ``prompt`` is how its file put it, ``template`` what was recognised around it."""

    id: str
    problem: str
    gold: str
    level: str
    prompt: str
    template: str
    row: int = 0
    """Where it first stands in its source, from 1."""


def template_text(name: str) -> str:
    """The text of a template: a known name, or a text of one's own with ``{problem}`` in it."""
    if HOLE in name:
        return name
    if name == AS_IN_FILE:
        return ""
    if name not in TEMPLATES:
        known = [*TEMPLATES, AS_IN_FILE]
        hint = suggest(name, known)
        said = f"unknown; known: {', '.join(known)}, or a text with {HOLE}" + (f"; {hint}" if hint else "")
        raise ConfigError([f"question template {name!r}: {said}"])
    return TEMPLATES[name]


def put(problem: Problem, template: str) -> str:
    """The prompt: the problem in a template (name or text), or as its file has it."""
    text = template_text(template)
    return text.replace(HOLE, problem.problem) if text else problem.prompt


def bare(prompt: str) -> tuple[str, str]:
    """The problem inside a prompt, and the name of the template around it (``plain``: none is known)."""
    for name, text in [*TEMPLATES.items(), ("dapo", _LOST_DOLLARS)]:
        before, after = text.split(HOLE)
        if (before or after) and prompt.startswith(before) and prompt.endswith(after):
            return prompt[len(before) : len(prompt) - len(after)].strip(), name
    shorter = prompt
    while found := _CHINESE.search(shorter):  # some rows have it twice
        shorter = shorter[: found.start()]
    return (prompt.strip(), "plain") if shorter == prompt else (shorter.strip(), CHINESE)


def same_key(problem: str) -> str:
    """Equal for problems that differ in white space and TeX spacing alone."""
    return _LAYOUT.sub("", unicodedata.normalize("NFKC", problem)).replace("dfrac", "frac").replace("tfrac", "frac")


def words(problem: str) -> list[str]:
    """Lower-case words, numbers and Chinese characters, without punctuation: what n-grams are made of."""
    return _WORD.findall(unicodedata.normalize("NFKC", problem).casefold())


def spelled(problem: str) -> str:
    """Words, numbers and operators: equal for problems that differ in layout, case and punctuation alone."""
    return " ".join(_WORD_OR_SIGN.findall(unicodedata.normalize("NFKC", problem).casefold()))


def item_id(source: str, problem: str) -> str:
    """``<source>/<10 hex digits of the problem's hash>``: the same for every file that holds this problem."""
    return f"{source}/{hashlib.sha256(same_key(problem).encode()).hexdigest()[:10]}"


def content_sha256(problems: Iterable[Problem]) -> str:
    """SHA-256 over problems and golds, hex: whatever order, copies and template their file has."""
    pairs = sorted([one.problem, one.gold] for one in problems)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
