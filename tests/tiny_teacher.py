"""Build the tests' teacher: `python tests/tiny_teacher.py artifacts/tiny_teacher`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from helpers.data import read_texts
from helpers.models import quiet_transformers

SENTENCES = Path(__file__).parent / "data" / "sentences.csv"


def build(folder: Path) -> Path:
    """Save a BERT encoder of 4 layers and width 64, without a masked-LM head, and a tokenizer of the test sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    wordpiece = BertWordPieceTokenizer(lowercase=True, strip_accents=False)
    wordpiece.train_from_iterator(read_texts(SENTENCES)["text"][:], vocab_size=400, show_progress=False)
    wordpiece.save_model(str(folder))
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


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
