"""One contender in a process of its own.

``python tests/bench/worker.py '{"contender": ..., "precision": ..., "work": {...}}'`` reads the number of steps of each
block from its standard input, 0 for no more, and answers in lines of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from transformers import BertConfig, BertForMaskedLM

from blocks import Blocks, Products, answers_alone, product_seconds
from classifiers import FINE_TUNING, PREDICTING, Passes
from contenders import CONTENDERS
from helpers.catalyst_today.engine import Engine
from helpers.classification import classifier_of
from helpers.data import bundled_reviews, encode, masked_lm_loaders, read_texts
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


def distilling(job: dict, ask: Callable, tell: Callable) -> dict:
    """Distil; of a run of so many steps return the scores, otherwise what its matrix products take."""
    work = job["work"]
    teacher, student, tokenizer = built(work)
    loaders = masked_lm_loaders(
        read_texts(work["corpus"]) if "corpus" in work else bundled_reviews("imdb"),
        tokenizer,
        max_length=work["length"],
        batch_size=work["batch"],
        steps_per_epoch=job.get("steps", 100_000),
        probability=work.get("masked", 0.15),
        valid_masks=21_000 if "steps" in job else 100,
    )
    products, made = Products(), []

    def blocks(loader) -> Blocks:
        made.append(Blocks(loader, ask, tell, products))
        return made[-1]

    trainable = sum(parameter.numel() for parameter in student.parameters())
    torch.manual_seed(1)
    tell({"ready": True})
    if job["contender"] != "extracted":
        CONTENDERS[job["contender"]].train(job["precision"], teacher, student, loaders, blocks)
    # AdamW's two float32 states, made in the first step, belong to what is held all along.
    result = {"peak_memory_mb": made[0].peak_mb - 8 * trainable / 1e6} if made else {}
    if "steps" in job:
        students, mask = {"student": student}, tokenizer.mask_token_id
        return result | masked_lm_scores(students, teacher, loaders["valid"], Engine("no"), mask)["student"]
    seconds = matrix_seconds(products, job["product_seconds"])
    return result | {"matrix_seconds": seconds, "matrix_flop": products.flop()}


def classifying(job: dict, ask: Callable, tell: Callable) -> dict:
    """Fine-tune a classifier, or predict with it."""
    work, made = job["work"], []
    teacher, student, tokenizer = built(work)
    encoder = teacher if work["layers"] == teacher.config.num_hidden_layers else student
    texts = bundled_reviews("rotten_tomatoes").shuffle(seed=0).select(range(work["texts"]))
    rows = encode(texts, tokenizer, work["length"])
    classifier = classifier_of(encoder, ["negative", "positive"], seed=0)
    tell({"ready": True})
    if work["does"] == "predicting":
        passes = Passes(rows, work["batch"], ask, tell)
        passes.run(PREDICTING[job["contender"]].train(job["precision"], classifier, tokenizer, work["batch"]))
        return {"peak_memory_mb": passes.peak_mb}

    def blocks(loader) -> Blocks:
        made.append(Blocks(loader, ask, tell, Products()))
        return made[-1]

    FINE_TUNING[job["contender"]].train(job["precision"], classifier, rows, tokenizer, work["batch"], blocks)
    return {"peak_memory_mb": made[0].peak_mb - 8 * classifier.num_parameters() / 1e6}


def main(job: dict) -> None:
    answers = answers_alone()

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    does = distilling if job["work"].get("does", "distilling") == "distilling" else classifying
    answer(does(job, lambda: int(sys.stdin.readline()), answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
