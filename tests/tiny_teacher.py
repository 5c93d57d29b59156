"""Build the tests' teacher: `python tests/tiny_teacher.py artifacts/tiny_teacher`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

from helpers.data import read_texts
from helpers.models import quiet_transformers

SENTENCES = Path(__file__).parent / "data" / "sentences.csv"


def build(folder: Path) -> Path:
    """Save a BERT encoder of 4 layers and width 64, without a masked-LM head, and a tokenizer of letters."""
    folder.mkdir(parents=True, exist_ok=True)
    # Single letters: so few texts teach something of letters, and a trained vocabulary would differ from run to run.
    letters = sorted(set("".join(read_texts(SENTENCES)["text"][:]).lower()) - {" "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), strip_accents=False, model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with quiet_transformers():
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def build_baseline(folder: Path) -> Path:
    """Save a DistilBERT encoder of 2 layers and width 32, and its tokenizer: the words of the sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in read_texts(SENTENCES)["text"] for word in text.lower().strip(".").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), strip_accents=False, model_max_length=64)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    with quiet_transformers():
        DistilBertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
