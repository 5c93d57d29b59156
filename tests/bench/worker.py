"""One contender in a process of its own: ``python tests/bench/worker.py '{"contender": ..., "work": {...}}'``.

It reads the number of steps of each block from its standard input, 0 for no more, and answers in lines of JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import BertConfig, BertForMaskedLM

from blocks import Blocks, Products, answers_alone, product_seconds
from contenders import CONTENDERS
from helpers.catalyst_today.engine import Engine
from helpers.data import bundled_reviews, masked_lm_loaders, read_texts
from helpers.evaluation import masked_lm_scores
from helpers.models import extract_student, load_teacher, quiet_transformers, spread_layers


def built(work: dict):
    """(teacher, student, tokenizer), the same for every contender."""
    torch.manual_seed(0)
    teacher, tokenizer = load_teacher(work["teacher"])
    if work.get("base"):
        teacher = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer))).eval()
    if work.get("vocabulary", teacher.config.vocab_size) != teacher.config.vocab_size:
        with quiet_transformers():
            teacher.resize_token_embeddings(work["vocabulary"], mean_resizing=False)
    layers = spread_layers(teacher.config.num_hidden_layers, work["layers"])
    return teacher, extract_student(teacher, layers), tokenizer


def matrix_seconds(products: Products, budget: float) -> float:
    """Seconds that the products of a step take one after another, each as fast as it is by itself."""
    return sum(count * product_seconds(*shape, budget) for shape, count in products.counts.items())


def main(job: dict) -> None:
    answers = answers_alone()

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    work = job["work"]
    teacher, student, tokenizer = built(work)
    texts = read_texts(work["corpus"]) if "corpus" in work else bundled_reviews("imdb")
    loaders = masked_lm_loaders(
        texts,
        tokenizer,
        max_length=work["length"],
        batch_size=work["batch"],
        steps_per_epoch=job.get("steps", 100_000),
        probability=work.get("masked", 0.15),
        valid_masks=21_000 if "steps" in job else 100,
    )
    products, made = Products(), []

    def blocks(loader) -> Blocks:
        made.append(Blocks(loader, lambda: int(sys.stdin.readline()), answer, products))
        return made[-1]

    trainable = sum(parameter.numel() for parameter in student.parameters())
    torch.manual_seed(1)
    answer({"ready": True})
    CONTENDERS[job["contender"]](teacher, student, loaders, blocks)
    # AdamW's two float32 states, made in the first step, belong to what is held all along.
    result = {"peak_memory_mb": made[0].peak_mb - 8 * trainable / 1e6}
    if "steps" in job:
        students, mask = {"student": student}, tokenizer.mask_token_id
        result |= masked_lm_scores(students, teacher, loaders["valid"], Engine(), mask)["student"]
    else:
        result |= {"matrix_seconds": matrix_seconds(products, job["product_seconds"]), "matrix_flop": products.flop()}
    answer(result)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
