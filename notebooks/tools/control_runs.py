"""How a run of the controls is made, and all of a part, one after the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
import numpy as np
import torch
from control_plan import PARTS, TASK, Run
from control_task import task_entry
from every_position import distill_everywhere
from torch.utils.data import DataLoader
from helpers.catalyst_today.engine import Engine
from helpers.catalyst_today.saving import write_json
from helpers.data import IGNORED
from helpers.evaluation import masked_lm_correct, masked_lm_scores
from helpers.models import extract_student
from helpers.runs import experiment
from helpers.runs.controls import packed
from helpers.runs.records import fingerprint, with_contents, without_output_dir
from helpers.training import distill

OF_TRAINING = ("MAX_STEPS", "LEARNING_RATE", "LOSS_WEIGHTS", "TEMPERATURE")
"""What a run that trains no student does not depend on."""
SHARED = ("scored_masked_tokens", "at_mask", "tested_texts")
"""What stands once in a record, for all its entries."""


def parameters_of(run: Run, base: dict[str, Any]) -> dict[str, Any]:
    """The parameters of one run, as notebook 03 would be given them."""
    shared = {name: value for name, value in base.items() if name != "SEEDS"}
    if not run.task:
        shared = {name: value for name, value in shared.items() if name not in TASK}
    return {**shared, **run.parameters, "SEED": run.seed}


def identity_of(run: Run, base: dict[str, Any], engine: Engine) -> str:
    """The fingerprint of all that a run depends on, whatever its label and part."""
    values = with_contents(parameters_of(run, base))
    if run.trains != "student":
        values = {name: value for name, value in values.items() if name not in OF_TRAINING}
    own = {name: value for name, value in run.settings.items() if name != "parameters"}
    return fingerprint({**own, **values, "precision": engine.mixed_precision})


def trained(
    run: Run, parameters: dict[str, Any], teacher, student, loaders: dict, engine: Engine
) -> float:
    """Train the student in place; the seconds that it took.

    Catalyst ends each mini-epoch with a validation: here of one batch, for the time counts.
    """
    rows, size = loaders["valid"].dataset, parameters["BATCH_SIZE"]
    few = rows.select(range(min(len(rows), size)))
    glance = DataLoader(few, size, collate_fn=loaders["valid"].collate_fn)
    start = time.perf_counter()
    (distill_everywhere if run.everywhere else distill)(
        teacher,
        student,
        {"train": loaders["train"], "valid": glance},
        loss_weights=parameters["LOSS_WEIGHTS"],
        temperature=parameters["TEMPERATURE"],
        epochs=experiment.split_steps(parameters["MAX_STEPS"])[0],
        learning_rate=parameters["LEARNING_RATE"],
        seed=run.seed,
        engine=engine,
        keep="last",
    )
    return time.perf_counter() - start


def make(run: Run, base: dict[str, Any], engine: Engine) -> tuple[dict, dict, dict]:
    """Make one run.

    Returns:
        Its entry in the record, its timings, and what is the same for all entries: the numbers of
        tokens that were scored and of texts, and which of the tokens [MASK] hides.
    """
    parameters = parameters_of(run, base)
    teacher = experiment.ensure_teacher(parameters, engine, run.recipe)
    steps = parameters["MAX_STEPS"]
    loaders = experiment.corpus_loaders(parameters, teacher.tokenizer, steps, run.seed)
    model, seconds = teacher.model, teacher.seconds
    if run.trains != "head":
        depth = teacher.model.config.num_hidden_layers
        layers = experiment.chosen_layers(parameters["LAYERS"], depth)
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            model = extract_student(teacher.model, layers, run.weights)
        seconds = 0.0
    if run.trains == "student":
        seconds = trained(run, parameters, teacher.model, model, loaders, engine)
    valid, mask = loaders["valid"], teacher.tokenizer.mask_token_id
    scores = masked_lm_scores({"model": model}, teacher.model, valid, engine, mask)["model"]
    tokens = scores.pop("masked_tokens")
    del scores["mask_tokens"]
    entry = {
        "label": run.label,
        "fingerprint": identity_of(run, base, engine),
        "run": run.settings,
        "scores": scores,
        "correct": packed(masked_lm_correct(model, valid, engine)),
    }
    if run.trains == "head" and teacher.history is not None:  # shows whether it is flat
        entry["validations"] = teacher.history.validations
    asked = [(batch["input_ids"] == mask)[batch["labels"] != IGNORED].numpy() for batch in valid]
    shared = {"scored_masked_tokens": tokens, "at_mask": packed(np.concatenate(asked))}
    if run.task:
        entry["task"], shared["tested_texts"] = task_entry(
            model, teacher.tokenizer, parameters, engine
        )
    return entry, {"seconds": seconds}, shared


def make_part(
    part: str, base: dict[str, Any], file: Path, record: dict[str, Any], others: list[dict]
) -> None:
    """Make the runs of a part that its record lacks; after each, the record is written.

    Args:
        part: of `PARTS`.
        base: the parameters that all runs share, and SEEDS.
        file: of the record.
        record: what has been made so far, perhaps nothing.
        others: records of other parts, made from the same code. A run that is there is not made
            again.

    Raises:
        ValueError: the record was made with other parameters, or in another precision.
    """
    engine, runs = Engine(), PARTS[part](base)
    settings = {"parameters": without_output_dir(base), "precision": engine.mixed_precision}
    for key, value in settings.items():
        if record.setdefault(key, value) != value:
            raise ValueError(
                f"{file.name} was made with the {key} {record[key]}, not {value}. Go back to "
                "these, or move the record away to have it made anew."
            )
    entries, timings = record.setdefault("entries", {}), record.setdefault("timings", {})
    found = {
        entry["fingerprint"]: (other, key)
        for other in others
        for key, entry in other["entries"].items()
    }
    for number, run in enumerate(runs, 1):
        if run.key in entries:
            continue
        print(f"{part} {number}/{len(runs)}: {run.key}", flush=True)
        name = identity_of(run, base, engine)
        if name in found:
            other, key = found[name]
            own = {"label": run.label, "run": run.settings}
            entry, timing = {**other["entries"][key], **own}, other["timings"][key]
            shared = {each: other[each] for each in SHARED if each in other}
        else:
            entry, timing, shared = make(run, base, engine)
        entries[run.key], timings[run.key] = entry, timing
        record.update(shared)
        write_json(file, record)
