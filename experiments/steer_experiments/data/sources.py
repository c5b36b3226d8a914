"""The suites and training sets by name: where they come from, how many items they have, what their content hashes to.

Hub revisions are those other public repositories pin for the same data set; where none was found it is None, and the
hub is asked only with a revision one gives. The content hashes are of the files released with STEER (:data:`RELEASED`),
which are what the paper evaluated on; a hub data set of the same name may word an item otherwise and hash otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from steer_experiments.data.rows import GSM8K, PLAIN, Columns

RELEASED = "github.com/zz-haooo/STEER@b31df71652cd103ddc3512656a430c39ba15dd13:datasets/"
VERL_COPIES = 32
"""avg@32 by replication: the released AIME and AMC files have every item so many times."""


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub. ``revision``: a full commit id, None when none could be established."""

    repo: str
    split: str
    revision: str | None
    config: str | None = None
    columns: Columns = PLAIN


@dataclass(frozen=True)
class Source:
    """Where items come from. ``sha256``: of the content of ``released`` (problems and golds, without copies)."""

    name: str
    expected_n: int | None
    files: tuple[str, ...]
    """Names looked for in a folder, the first that is there."""
    hub: Hub | None = None
    released: str | None = None
    sha256: str | None = None
    copies: int = 1
    """How often a file may hold every item, beside once."""
    columns: Columns = PLAIN
    template: str = "boxed"
    """How the questions are put unless one says otherwise; see :data:`.questions.TEMPLATES`."""
    compared_as_text: Mapping[str, str] = field(default_factory=dict)
    """Golds math-verify cannot read, with the reason: an answer in the same spelling alone is right."""

    def read_from(self, path: Path | None) -> Source:
        """This source with the columns of the hub's data set where it is read from there (``path`` None)."""
        return replace(self, columns=self.hub.columns) if path is None and self.hub else self


def _suite(
    name: str, n: int, sha256: str, hub: Hub, copies: int = 1, file: str | None = None, columns: Columns = PLAIN
) -> Source:
    file = file or f"{name}.parquet"
    names = tuple(dict.fromkeys((file, f"{name}.parquet", f"{name}.jsonl")))
    return Source(name, n, names, hub, RELEASED + file, sha256, copies, columns)


_QUESTION = Columns("question", "answer")
SUITES: dict[str, Source] = {
    "aime24": _suite(
        "aime24",
        30,
        "58a8a67793461063783ad0d0d2584e2c3a55a560131923b29d9c459ade175ae5",
        Hub("HuggingFaceH4/aime_2024", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
        VERL_COPIES,
    ),
    "aime25": _suite(
        "aime25",
        30,
        "7f05a5224f46dd6910ed40cbf930de1fefbceb11b5a0960d57c7c6ec5536f871",
        Hub("math-ai/aime25", "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
        VERL_COPIES,
    ),
    "amc23": _suite(
        "amc23",
        40,
        "8b3ecab8c2e77539870bf935809472cdd597cdc3ad6a5bab2b6d4ef09f2a089e",
        Hub("math-ai/amc23", "test", None, columns=_QUESTION),
        VERL_COPIES,
    ),
    "math500": _suite(
        "math500",
        500,
        "6416aadb68744fe8b6754b73aa62f4d9deeec617d96b36803fc64a2f68291ad3",
        Hub("HuggingFaceH4/MATH-500", "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    ),
    "minerva_math": _suite(
        "minerva_math",
        272,
        "c9ff188c360d141e168a7f0dd74a013bed6abd831a8512cdba2c47ac62e57150",
        Hub("math-ai/minervamath", "test", None, columns=_QUESTION),
    ),
    "olympiadbench": _suite(
        "olympiadbench",
        675,
        "8a6dfb33218d6bfcd9337f3e0d7ecec9099280ad7349e850542f787eba38d6fe",
        Hub("math-ai/olympiadbench", "test", None, columns=Columns("question", "final_answer")),
    ),
    "gsm8k": _suite(
        "gsm8k",
        1319,
        "8d0c5e1d16db444f7e0da25cecaecc7975933d8603011a021d4cd08214ab98a3",
        Hub("openai/gsm8k", "test", "740312add88f781978c0658806c59bc2815b9866", "main", GSM8K),
        file="gsm8k_test.parquet",
        columns=GSM8K,
    ),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "math6": ("aime24", "aime25", "amc23", "math500", "minerva_math", "olympiadbench"),
}

TRAINING: dict[str, Source] = {
    "dapo-math-17k": Source(
        "dapo-math-17k",
        17398,
        ("DAPO-Math-17k.parquet", "dapo-math-17k.parquet", "dapo-math-17k.jsonl"),
        Hub("BytedTsinghua-SIA/DAPO-Math-17k", "train", "65877096c24ffa7abc4e4fa5edb95cf3413a5674"),
        RELEASED + "DAPO-Math-17k.parquet",
        "49f9ce8975c417fb04f138a65c4f8f5e4c55a88ad8b0804578545b512e54ffc0",
        template="file",
    ),
    "gsm8k": Source(
        "gsm8k",
        7473,
        ("gsm8k_train.parquet", "gsm8k_train.jsonl"),
        Hub("openai/gsm8k", "train", "740312add88f781978c0658806c59bc2815b9866", "main", GSM8K),
        columns=GSM8K,
    ),
}
