r"""Where the answer stands in a response, and what can be said of it as text alone: boxes, integers, spelling.

Pure functions in time linear in the text, for any text: unbalanced braces, a megabyte of digits, nothing at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_FIRST = re.compile(r"\\(?:boxed|fbox)")
_JOINED = re.compile(r",|and|or|,and|,or")  # what stands between the boxes of one list, see `_link`
_LINK_LENGTH = 40
_MARKUP = re.compile(r"\$|\\[()\[\],;:! ]|\\q?quad|\\(?:text|mathrm|mbox)(?=\{)|[{}\s~]")
_INNER_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_INTEGER = re.compile(r"([+-]?)0*([0-9]+)")
_SEPARATOR = r"(?:,|\{,\}|\\[,!;: ]|~|[ \u00a0\u202f])"
_GROUPED = re.compile(rf"[+-]?[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?:\.[0-9]+)?")
_BRACED = re.compile(r"\{([^{}\\]*)\}")
_GROUPED_LONGEST = 400
_SAME = {"{:}": ":", "\\varnothing": "\\emptyset"}
_UNIT = (
    r"(?:dollars?|cents?|degrees?|units?|square|sq\.?|cubic|seconds?|minutes?|hours?|days?|weeks?|months?|years?|"
    r"meters?|metres?|kilometers?|kilometres?|miles?|feet|foot|inch(?:es)?|yards?|people|students?|ways?|"
    r"pounds?|grams?|kilograms?|liters?|litres?|points?|square\s+units?|miles\s+per\s+hour)"
)
_WITH_UNIT = re.compile(rf"\\?\$?\s*([+-]?[0-9][0-9.,]*)(?:\\[ ,]|~|\s)*{_UNIT}(?:\s+{_UNIT})?", re.IGNORECASE)
_UNIT_LONGEST = 80
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right|displaystyle)\b|\\mathrm(?=\{)|\\text(?=\{)|[\s~$]")


@dataclass(frozen=True)
class Answer:
    """What the last box holds, or that there is none. ``problem`` says why a box gives no answer."""

    text: str | None
    problem: str | None = None


def boxed_answer(response: str) -> Answer:
    r"""The content of the last ``\boxed{...}``; of a list of boxes ("\boxed{2} and \boxed{3}") all, with commas.

    A box inside a box is no box of its own. A box that is not closed after the last whole one is no answer: the text
    may have been cut in the middle of a number. Escaped braces do not count.
    """
    boxes, unclosed = _boxes(response)
    if unclosed > (boxes[-1].end if boxes else -1):
        return Answer(None, "the last box is not closed")
    if not boxes:
        return Answer(None)
    group = [boxes[-1]]
    for before, after in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if not _link(response[before.end : after.begin]):
            break
        group.append(before)
    texts = [clean(_INNER_BOX.sub("", response[box.inside : box.end - 1])) for box in reversed(group)]
    found = ",".join(dict.fromkeys(texts))
    return Answer(found) if found else Answer(None, "the last box is empty")


def clean(text: str) -> str:
    """An answer without what does not belong to it: outer space and dollars, the sentence's full stop or comma, the
    separators of thousands, and unit words behind a plain number."""
    text = text.strip().strip("$").strip()
    text = text if text.endswith("..") else text.rstrip(".,;").rstrip()
    for written, meant in _SAME.items():
        text = text.replace(written, meant)
    if len(text) < _GROUPED_LONGEST and (inner := _BRACED.fullmatch(text)):
        return clean(inner[1])
    if len(text) < _GROUPED_LONGEST and _GROUPED.fullmatch(text):
        text = re.sub(_SEPARATOR, "", text)
    if len(text) < _UNIT_LONGEST and (number := _WITH_UNIT.fullmatch(text)):
        text = clean(number[1])
    return text


def integer(text: str) -> tuple[str, str] | None:
    """Sign ("" or "-") and digits of a plain integer of any length; None for any other text. Zero has no sign."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    digits = found[2]
    return ("-" if found[1] == "-" and digits != "0" else "", digits)


def same_text(one: str, other: str) -> bool:
    """Equal up to TeX spacing, ``\\left``/``\\right`` and the fonts of words."""
    return one == other or _spelling(one) == _spelling(other)


def _spelling(text: str) -> str:
    return _SPACING.sub("", text).replace("dfrac", "frac").replace("tfrac", "frac")


@dataclass(frozen=True)
class _Box:
    begin: int
    inside: int
    end: int


def _boxes(text: str) -> tuple[list[_Box], int]:
    """Closed boxes that are in no other closed box, and where the last box that is never closed begins (-1: none)."""
    first = _FIRST.search(text)
    closed: list[_Box] = []
    open_: list[tuple[int, int] | None] = []  # None: a brace that is no box
    for token in _TOKEN.finditer(text, first.start()) if first else ():
        if token["box"]:
            open_.append(token.span())
        elif token[0] == "{":
            open_.append(None)
        elif token[0] == "}" and open_ and (box := open_.pop()):
            while closed and closed[-1].begin > box[0]:
                closed.pop()
            closed.append(_Box(*box, token.end()))
    return closed, max((box[0] for box in open_ if box), default=-1)


def _link(between: str) -> bool:
    return len(between) <= _LINK_LENGTH and _JOINED.fullmatch(_MARKUP.sub("", between)) is not None
