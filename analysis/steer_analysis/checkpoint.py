"""Whether a checkpoint folder is whole, judged from its files alone: no torch, no weights loaded."""

import json
from pathlib import Path


def check_checkpoint(folder: Path) -> None:
    """Raise ``ValueError`` with the reason when ``folder`` is no complete Hugging Face model with a tokenizer."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no checkpoint; the run did not finish, or was told not to save one")
    weights = sorted(folder.glob("*.safetensors"))
    tokenizers = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if (folder / name).is_file()]
    wrong = [] if (folder / "config.json").is_file() else ["config.json is missing"]
    wrong += [] if tokenizers else ["the tokenizer is missing"]
    wrong += [] if weights else ["there are no *.safetensors weights"]
    wrong += [f"{path.name} is cut short or damaged" for path in weights if not _is_whole(path)]
    wrong += [f"{name} is missing" for name in _shards(folder) if not (folder / name).is_file()]
    if wrong:
        raise ValueError(f"{folder}: the checkpoint is not whole: {'; '.join(wrong)}")


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says (8 bytes of length, a JSON header, the data)."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 2 <= header_size <= path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(header_size))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + header_size + max(ends, default=0)


def _shards(folder: Path) -> list[str]:
    """The weight files a sharded checkpoint's index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))
