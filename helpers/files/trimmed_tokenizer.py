"""A tokenizer with fewer tokens: which ones the others rest on, and the same tokenizer made of those that stay.

Knows nothing of models.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

ASCII = [chr(code) for code in range(33, 127)]


def read_tokenizer(tokenizer: PreTrainedTokenizerBase, what: str = "VOCABULARY") -> dict:
    """What tokenizer.json says of a tokenizer that can be trimmed.

    Raises:
        ValueError: it is neither WordPiece, nor byte-level BPE that has all bytes, nor Unigram.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        found = f"{name} is written in Python, and has no tokenizer.json"
    else:
        said = json.loads(tokenizer.backend_tokenizer.to_str())
        model = said["model"]
        found = f"{name} is {model['type']}"
        if model["type"] in ("WordPiece", "Unigram"):
            return said
        if model["type"] == "BPE":
            if '"ByteLevel"' in json.dumps(said["pre_tokenizer"]) and set(ByteLevel.alphabet()) <= set(model["vocab"]):
                return said
            found = f"{name} is BPE, but not of bytes, or not of all 256"
    raise ValueError(
        f"{what}: the tokenizer cannot be trimmed: {found}. Trimmed are WordPiece (as BERT's), byte-level BPE "
        "(RoBERTa's, ModernBERT's) and Unigram (XLM-R's, CamemBERT's). Set VOCABULARY to None."
    )


def merge_parts(said: dict) -> dict[int, set[int]]:
    """Of a BPE, from a token's id to the ids of all parts that some merge makes it from; of others, nothing."""
    parts, ids = defaultdict(set), said["model"]["vocab"]
    if said["model"]["type"] == "BPE":
        for merge in said["model"]["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            parts[ids[left + right]] |= {ids[left], ids[right]}
    return parts


def indispensable(tokenizer: PreTrainedTokenizerBase, said: dict, used: set[str]) -> set[int]:
    """The ids of special and added tokens, and of ASCII and the characters of some `used` tokens.

    A character's two tokens, at the start of a word and further on, are kept where there are two; of a BPE, the 256
    bytes; of a Unigram, the token of the lowest score as well, from which the cost of an unknown character is reckoned.
    """
    model, ids = said["model"], tokenizer.get_vocab()
    needed = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    if model["type"] == "BPE":
        alphabet = set(ByteLevel.alphabet())
    else:
        start = model.get("continuing_subword_prefix", "")
        characters = {*ASCII, *(character for token in used for character in token.removeprefix(start))}
        alphabet = {*characters, *(start + character for character in characters)}
    if model["type"] == "Unigram":
        alphabet |= {min(model["vocab"], key=lambda piece: piece[1])[0]}
        alphabet |= {token for token in ids if model.get("byte_fallback") and token.startswith("<0x")}
    return needed | {ids[token] for token in alphabet if token in ids}


def with_tokens(tokenizer: PreTrainedTokenizerBase, rows: Sequence[int]) -> PreTrainedTokenizerBase:
    """The same tokenizer of fewer tokens, as `AutoTokenizer` loads it from a folder.

    Args:
        tokenizer: one that `read_tokenizer` takes; it is left as it is.
        rows: the ids that stay; the first gets the id 0, and so on.
    """
    new, said = {old: number for number, old in enumerate(rows)}, read_tokenizer(tokenizer)
    model = said["model"]
    if model["type"] == "Unigram":
        model["unk_id"] = new.get(model["unk_id"])
        kept = {number: piece for number, piece in enumerate(model["vocab"]) if number in new}
        model["vocab"] = [kept[old] for old in rows if old in kept]
    else:
        kept = {token: number for token, number in model["vocab"].items() if number in new}
        model["vocab"] = {token: new[number] for token, number in kept.items()}
    if model["type"] == "BPE":
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if {pair[0], pair[1], pair[0] + pair[1]} <= set(kept)]
    for token in said["added_tokens"]:
        token["id"] = new[token["id"]]
    if said.get("padding"):
        said["padding"]["pad_id"] = new[said["padding"]["pad_id"]]
    for processor in _processors(said.get("post_processor")):
        for edge in ("cls", "sep"):  # of BertProcessing and RobertaProcessing: a token and its id
            if edge in processor:
                processor[edge][1] = new[processor[edge][1]]
        for special in processor.get("special_tokens", {}).values():  # of TemplateProcessing
            special["ids"] = [new[number] for number in special["ids"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).iterdir():
            if file.name not in ("tokenizer.json", "tokenizer_config.json"):
                file.unlink()  # vocab.txt and its like list all tokens
        (Path(folder) / "tokenizer.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        config = Path(folder) / "tokenizer_config.json"
        options = json.loads(config.read_text(encoding="utf-8"))
        options.pop("added_tokens_decoder", None)  # their old ids; tokenizer.json has the new ones
        config.write_text(json.dumps(options), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _processors(said: dict | None) -> list[dict]:
    if said is None:
        return []
    return said["processors"] if said["type"] == "Sequence" else [said]
