"""What a cut saves and costs: ``python tests/bench/cuts.py importance|vocabulary|distilled|multilingual|pairs``.

Each takes some minutes and writes its part of ``cuts.json``, of which docs/results.md shows `distilled`. Rates are to
be compared within one part alone: the machine may do other work meanwhile.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from helpers.catalyst_today.engine import Engine
from helpers.catalyst_today.saving import write_json
from helpers.data import bundled_reviews, masked_lm_loaders, masked_targets, renumbered, token_counts
from helpers.evaluation import masked_lm_scores
from helpers.losses import cosine_loss, kl_div_loss, masked_lm_loss
from helpers.models import (
    FAMILIES,
    MaskedPositionLM,
    extract_student,
    feed_forward,
    keep_rows,
    load_teacher,
    narrow_feed_forward,
    neuron_importance,
    rows_to_cover,
    trim_vocabulary,
)

RECORD = Path(__file__).with_name("cuts.json")
INPUTS = ("input_ids", "attention_mask", "labels")


def step(teacher: MaskedPositionLM | None, student: MaskedPositionLM, optimizer, batch, engine: Engine) -> None:
    """One step of distillation, or of masked LM where there is no teacher."""
    inputs = [batch[key] for key in INPUTS]
    with engine.autocast():
        logits, hidden = student(*inputs)
        loss = masked_lm_loss(logits, masked_targets(batch))
        if teacher is not None:
            with torch.no_grad():
                t_logits, t_hidden = teacher(*inputs)
            loss = 0.625 * kl_div_loss(logits, t_logits) + 0.25 * loss
            loss = loss + 0.125 * cosine_loss(hidden[-1], t_hidden[-1], batch["attention_mask"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01, fused=True)


def prepared(texts, steps: int):
    """(MiniLM with a head of so many steps of 32 x 64 tokens, its tokenizer, loaders)."""
    torch.manual_seed(0)
    teacher, tokenizer = load_teacher("minilm")
    loaders = masked_lm_loaders(texts, tokenizer, batch_size=32, steps_per_epoch=1000, valid_masks=4000)
    wrapped, optimizer, engine = MaskedPositionLM(teacher).train(), adamw(teacher), Engine()
    for batch in islice(loaders["train"], steps):
        step(None, wrapped, optimizer, batch, engine)
    return teacher.eval(), tokenizer, loaders


def contribution(model, batches):
    """The other measure: the mean absolute output of a neuron times the length of its column on the way out."""
    family = FAMILIES[model.config.model_type]
    layers = model.get_submodule(family.layers)
    totals = torch.zeros(len(layers), getattr(model.config, family.width))

    def add(number):
        return lambda module, given: totals[number].add_(given[0].detach().abs().flatten(0, 1).sum(0))

    outward = [layer.get_submodule(family.outward) for layer in layers]
    hooks = [part.register_forward_pre_hook(add(number)) for number, part in enumerate(outward)]
    with torch.no_grad():
        for batch in batches:
            MaskedPositionLM(model)(*(batch[key] for key in INPUTS))
    for hook in hooks:
        hook.remove()
    return torch.stack([total * part.weight.detach().norm(dim=0) for total, part in zip(totals, outward, strict=True)])


def importance() -> dict:
    """Masked accuracy after half of the feed-forward is cut, before any training, by measure of importance."""
    teacher, tokenizer, loaders = prepared(bundled_reviews("imdb").select(range(2000)), 80)
    batches = list(islice(loaders["train"], 8))
    found, cases = {}, {"6 layers": teacher, "layers [0, 2, 5]": extract_student(teacher, [0, 2, 5])}
    measures = {"first-order change of the loss": neuron_importance, "output times outgoing weights": contribution}
    measures["at random"] = lambda model, given: torch.rand_like(neuron_importance(model, given[:1]))
    for case, model in cases.items():
        cut = {"uncut": model}
        for name, measure in measures.items():
            feed_forward.neuron_importance = measure
            cut[name] = narrow_feed_forward(model, 768, batches)
        scores = masked_lm_scores(cut, teacher, loaders["valid"], Engine(), tokenizer.mask_token_id)
        keys = ("accuracy_at_mask", "masked_accuracy", "perplexity", "kl_to_teacher", "mask_tokens")
        found[case] = {name: {key: round(values[key], 4) for key in keys} for name, values in scores.items()}
    return found


def rates(pairs: dict, batch_of: dict, engine: Engine, steps: int) -> dict[str, float]:
    """Tokens a second of distilling each pair, a step of one after a step of the other."""
    optimizers = {name: adamw(student) for name, (_, student) in pairs.items()}
    seconds, tokens = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0)
    for number in range(steps + 2):
        for name, (teacher, student) in pairs.items():
            batch, began = next(batch_of[name]), time.perf_counter()
            step(teacher, student, optimizers[name], batch, engine)
            if number >= 2:  # what comes before is a warm-up
                seconds[name] += time.perf_counter() - began
                tokens[name] += batch["attention_mask"].sum().item()
    return {name: tokens[name] / seconds[name] for name in pairs}


def vocabulary() -> dict:
    """The bundled corpus: rows, parameters, megabytes; tokens a second of distilling before and after."""
    texts = bundled_reviews("imdb")
    teacher, tokenizer = load_teacher("minilm")
    size = rows_to_cover(token_counts(texts, tokenizer), 0.999)
    small, trimmed = trim_vocabulary(teacher, tokenizer, texts, size)
    pairs, batches, found = {}, {}, {"rows": [len(tokenizer), size]}
    for name, (model, own) in {"whole": (teacher, tokenizer), "trimmed": (small, trimmed)}.items():
        student = extract_student(model, [0, 2, 5])
        found[name] = {"parameters": student.num_parameters(), "megabytes": student.num_parameters() * 4 / 1e6}
        pairs[name] = (MaskedPositionLM(model), MaskedPositionLM(student).train())
        few = texts.select(range(1000))
        batches[name] = iter(masked_lm_loaders(few, own, batch_size=32, steps_per_epoch=1000)["train"])
    found["tokens_per_second"] = rates(pairs, batches, Engine(), steps=16)
    found["ratio"] = found["tokens_per_second"]["trimmed"] / found["tokens_per_second"]["whole"]
    return found


STEPS = 120
"""Of each distillation in `distilled`."""


def learned(teacher, student, texts, tokenizer, seed: int, seconds: float | None = None):
    """(the student after `STEPS` steps of 32 x 64 tokens, or after so many seconds of them; seconds; steps)."""
    student, engine = copy.deepcopy(student), Engine()
    torch.manual_seed(seed)
    wrapped, reference, optimizer = MaskedPositionLM(student).train(), MaskedPositionLM(teacher), adamw(student)
    loader = masked_lm_loaders(texts, tokenizer, batch_size=32, steps_per_epoch=4 * STEPS, order_seed=seed)["train"]
    spent, steps = 0.0, 0
    for batch in loader:
        if steps == STEPS if seconds is None else spent >= seconds:
            break
        began = time.perf_counter()
        step(reference, wrapped, optimizer, batch, engine)
        spent, steps = spent + time.perf_counter() - began, steps + 1
    return student.eval(), spent, steps


def distilled() -> dict:
    """Students of four shapes, distilled: as they begin, after equal steps, after equal seconds; three seeds.

    All are scored on the same hidden tokens, in the blocks of which all tokens have kept their rows.
    """
    texts = bundled_reviews("imdb")
    teacher, tokenizer, loaders = prepared(texts, 300)
    size = rows_to_cover(token_counts(texts, tokenizer), 0.999)
    small, own = trim_vocabulary(teacher, tokenizer, texts, size)
    old, new = tokenizer.get_vocab(), own.get_vocab()
    kept = [old[token] for token in sorted(new, key=new.get)]
    blocks = [both for both in (renumbered(batch, kept) for batch in loaders["valid"]) if len(both[0]["input_ids"])]
    spread, few = extract_student(teacher, [0, 2, 5]), list(islice(loaders["train"], 8))
    shapes = {
        "three layers": (teacher, tokenizer, spread),
        "three layers, fewer rows": (small, own, keep_rows(spread, kept)),
        "three layers, half the feed-forward": (teacher, tokenizer, narrow_feed_forward(spread, 768, few)),
        "two layers": (teacher, tokenizer, extract_student(teacher, [0, 5])),
    }
    found = {name: {"parameters": student.num_parameters()} for name, (_, _, student) in shapes.items()}
    took = {name: [] for name in shapes}
    rows = {name: blocks[0][of is small]["input_ids"] for name, (of, _, _) in shapes.items()}
    with torch.no_grad():
        for _ in range(11):
            for name, (_, _, student) in shapes.items():
                began = time.perf_counter()
                student.base_model(rows[name])
                took[name].append(1000 * (time.perf_counter() - began))

    def scores(name, student):
        of, reads, _ = shapes[name]
        both = [each[of is small] for each in blocks]
        values = masked_lm_scores({"student": student}, of, both, Engine(), reads.mask_token_id)["student"]
        keys = ("accuracy_at_mask", "masked_accuracy", "perplexity", "kl_to_teacher", "top5_overlap", "mask_tokens")
        return {key: round(values[key], 4) for key in keys}

    for name, (_, _, student) in shapes.items():
        found[name] |= {"layers_ms": round(statistics.median(took[name][1:]), 1), "before": scores(name, student)}

    def run(name, seed, limit=None):
        of, reads, student = shapes[name]
        after, seconds, steps = learned(of, student, texts, reads, seed, limit)
        return {"seconds": round(seconds, 1), "steps": steps, "after": scores(name, after)}

    first, *others = shapes
    for seed in range(3):
        equal_steps = {name: run(name, seed) for name in shapes}
        equal_seconds = {name: run(name, seed, equal_steps[first]["seconds"]) for name in others}
        for key, runs in (("equal steps", equal_steps), ("equal seconds", equal_seconds)):
            for name, made in runs.items():
                found[name].setdefault(key, []).append(made)
    return found


def random_pair(rows: int):
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    teacher = BertForMaskedLM(BertConfig(vocab_size=rows, **shape)).eval()
    return MaskedPositionLM(teacher), MaskedPositionLM(extract_student(teacher, [0, 2, 5])).train()


def random_batches(rows: int):
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(5, rows, (32, 64), generator=generator)
        labels = torch.where(torch.rand(32, 64, generator=generator) < 0.15, ids, -100)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def multilingual() -> dict:
    """MiniLM's shape with random weights and a multilingual vocabulary, whole and trimmed: rates, and peak memory."""
    sizes, found = {"whole": 119_547, "trimmed": 20_000}, {}
    for name, rows in sizes.items():
        done = subprocess.run([sys.executable, __file__, "peak", str(rows)], capture_output=True, text=True, check=True)
        found[f"peak_memory_mb_{name}"] = float(done.stdout.splitlines()[-1])
    pairs = {name: random_pair(rows) for name, rows in sizes.items()}
    batches = {name: random_batches(rows) for name, rows in sizes.items()}
    found["tokens_per_second"] = rates(pairs, batches, Engine(), steps=8)
    found["rate_ratio"] = found["tokens_per_second"]["trimmed"] / found["tokens_per_second"]["whole"]
    found["memory_ratio"] = found["peak_memory_mb_trimmed"] / found["peak_memory_mb_whole"]
    return found


def peak(rows: int) -> float:
    """Megabytes of a process that makes three steps."""
    rates({"one": random_pair(rows)}, {"one": random_batches(rows)}, Engine(), steps=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pair_batch(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two texts of unlike lengths and one separator token throughout; the label: is the first one's number smaller?"""
    first, second = (torch.randint(10, 30, (size, 1), generator=generator) for _ in range(2))
    noise = torch.randint(30, 60, (size, 10), generator=generator)
    places = torch.randint(1, 5, (size,), generator=generator)
    ids = torch.cat([torch.full((size, 1), 2), noise, torch.full((size, 1), 3)], dim=1)
    ids.scatter_(1, places[:, None], first)
    ids.scatter_(1, 5 + torch.randint(1, 5, (size,), generator=generator)[:, None], second)
    types = (torch.arange(12) > 5).long().expand(size, 12)
    return {"input_ids": ids, "token_type_ids": types, "labels": (first < second)[:, 0].long()}


def pairs() -> dict:
    """A task of two texts, the label being which came first: students of the teacher's class and DistilBERTs."""
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(vocab_size=60, **shape)).eval()
    test, found = pair_batch(2000, torch.Generator().manual_seed(9)), {"same": [], "distilbert": []}
    for kind, accuracies in found.items():
        for seed in range(3):
            torch.manual_seed(seed)
            student = extract_student(teacher, [0, 2], student=kind)
            classifier = AutoModelForSequenceClassification.from_config(student.config)
            classifier.base_model.load_state_dict(student.base_model.state_dict(), strict=False)
            used = {"input_ids", "labels"} | ({"token_type_ids"} if kind == "same" else set())
            optimizer, generator = (
                torch.optim.AdamW(classifier.parameters(), lr=1e-3),
                torch.Generator().manual_seed(seed),
            )
            for _ in range(400):
                batch = pair_batch(32, generator)
                logits = classifier(**{key: batch[key] for key in used - {"labels"}}).logits
                F.cross_entropy(logits, batch["labels"]).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                logits = classifier.eval()(**{key: test[key] for key in used - {"labels"}}).logits
            accuracies.append((logits.argmax(-1) == test["labels"]).float().mean().item())
    return found


if __name__ == "__main__":
    if sys.argv[1] == "peak":
        print(peak(int(sys.argv[2])))
    else:
        what = {each.__name__: each for each in (importance, vocabulary, distilled, multilingual, pairs)}
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        write_json(RECORD, record | {sys.argv[1]: what[sys.argv[1]]()})
