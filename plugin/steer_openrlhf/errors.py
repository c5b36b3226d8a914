"""One error type for everything a user can get wrong, carrying every mistake at once."""

import difflib
from collections.abc import Iterable, Sequence

from pydantic import ValidationError


class ConfigError(ValueError):
    """Bad input found before anything was started. ``mistakes`` has one complete sentence for each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        assert mistakes, "a ConfigError needs at least one mistake"
        self.mistakes = list(mistakes)
        head = "1 mistake:" if len(mistakes) == 1 else f"{len(mistakes)} mistakes:"
        super().__init__("\n  - ".join([head, *self.mistakes]))


def suggest(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""


def mistakes_of(error: ValidationError, where: str = "", fields: Iterable[str] = ()) -> list[str]:
    """Every error of a pydantic validation in our words: what, the value, what is allowed.

    ``where`` is prefixed to each location (``"steer."``); ``fields`` are known names, to suggest the near one.
    """
    known = list(fields)
    sentences = []
    for item in error.errors(include_url=False):
        name = where + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            hint = suggest(str(item["loc"][-1]), known)
            sentences.append(f"{name}: unknown key" + (f"; {hint}" if hint else f"; known: {', '.join(known)}"))
        elif item["type"] == "value_error":
            sentences.append((f"{name.rstrip('.')}: " if name else "") + str(item["ctx"]["error"]))
        elif item["type"] == "missing":
            sentences.append(f"{name}: is required and was not given")
        else:
            sentences.append(f"{name} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return sentences
