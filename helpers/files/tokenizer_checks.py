"""Does a tokenizer fit its model, and does it know the words of some texts? Knows nothing of models."""

from __future__ import annotations

import unicodedata
import warnings

import datasets
from transformers import PreTrainedTokenizerBase

MOST_UNKNOWN = 0.9
"""From this share of [UNK] on, next to nothing is left that could be learned."""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, what: str, tokens: tuple[str, ...]) -> None:
    """Raise a ValueError unless a tokenizer fits `rows` word embeddings, has these special `tokens`, and keeps what its
    vocabulary tells apart. See `load_checked`."""
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{what}: it has no tokenizer; only {len(vocabulary)} special tokens are known. Put the files of its own "
            "tokenizer beside the weights: tokenizer.json or vocab.txt, and tokenizer_config.json."
        )
    ids = max(len(tokenizer), *(number + 1 for number in vocabulary.values()))
    if ids > rows:
        raise ValueError(
            f"{what}: its tokenizer has {ids:,} tokens, but there are word embeddings for {rows:,}. Save the model "
            "again after model.resize_token_embeddings(len(tokenizer)), or take the tokenizer that it was trained with."
        )
    missing = [name for name in tokens if getattr(tokenizer, name) is None]
    if missing:
        raise ValueError(
            f"{what}: its tokenizer has no {' and no '.join(missing)}. Set it (tokenizer.{missing[0]} = ...) to a "
            "token that the model was trained with, and save the tokenizer again."
        )
    words = sorted(word for word in vocabulary if word.isalpha())
    words = words[:: max(1, len(words) // 1000)]
    lost = [word for word in words if _loses(tokenizer, word)]
    if len(lost) > 0.05 * len(words):
        raise ValueError(
            f"{what}: its tokenizer drops capitals or accents, but its vocabulary has them: {lost[0]!r} is read as "
            f'{" ".join(tokenizer.tokenize(lost[0]))!r}. Write "do_lower_case": false, or "strip_accents": false, into '
            "its tokenizer_config.json."
        )


def _loses(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    """True where a tokenizer reads a word as it reads the same without capitals and accents."""
    letters = unicodedata.normalize("NFD", word.lower())
    plain = unicodedata.normalize("NFC", "".join(each for each in letters if unicodedata.category(each) != "Mn"))
    pieces = tokenizer.tokenize(word)
    return plain != word and pieces == tokenizer.tokenize(plain) and tokenizer.unk_token not in pieces


def check_known(texts: datasets.Dataset, tokenizer, what: str = "CORPUS", model: str = "TEACHER") -> None:
    """Look at a sample of texts: does the tokenizer know their words?

    [UNK] is counted against the tokens that have a letter. A warning says so from 5 % on.

    Args:
        texts: a dataset with a column ``text``.
        tokenizer: the tokenizer of the model that is to read them.
        what, model: the parameters that name the texts and the model.

    Raises:
        ValueError: nine tenths or more are [UNK], or no token has a letter.
    """
    sample = texts.select(range(0, len(texts), max(1, len(texts) // 1000)))["text"]
    ids = [
        number
        for text in sample
        for number in tokenizer(text[:2000], add_special_tokens=False, verbose=False)["input_ids"]
    ]
    unknown = ids.count(tokenizer.unk_token_id)
    pieces = [piece for piece in tokenizer.convert_ids_to_tokens(ids) if any(map(str.isalpha, piece))]
    known = sum(piece != tokenizer.unk_token for piece in pieces)
    share = unknown / max(1, unknown + known)
    found = f"{what}: {share:.0%} of the tokens in a sample of its texts are [UNK], unknown to {model}'s tokenizer"
    if share >= MOST_UNKNOWN or not known:
        raise ValueError(f"{found}, so nothing is left to be learned. Set {model} to one that knows this language.")
    if share >= 0.05:
        warnings.warn(f"{found}. Does {model} know this language, and its capital letters?", stacklevel=2)
