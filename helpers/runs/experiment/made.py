"""The models that one notebook makes and the next uses: each is trained once, and then found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from catalyst.core.callback import Callback
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from helpers.catalyst_today.engine import Engine, default_precision
from helpers.data import id_counts
from helpers.models import head_is_untrained, start_head
from helpers.runs.cards import student_card, teacher_card
from helpers.runs.experiment.shape import chosen_layers, cuts, make_student, prepare_teacher
from helpers.runs.experiment.texts import corpus_loaders, split_steps
from helpers.runs.experiment.trained import HEAD, HeadRecipe, Trained, found_or_made
from helpers.runs.records import fingerprint, from_root, identities, identity
from helpers.training import distill, train_masked_lm

TEACHER_SEED = 99_991
"""One of its own, so that no student reads the rows in the order in which its teacher did."""


def _teacher_values(
    parameters: dict[str, Any], trained: bool, engine: Engine | None, recipe: HeadRecipe
) -> dict[str, Any]:
    """What a teacher, and what is learned from it, depends on; `trained` where its head was trained here."""
    keys = ("MAX_LENGTH", "TEACHER_BATCH_SIZE", "TEACHER_STEPS") if trained else ("MAX_LENGTH",)
    # Named only where it is not the first recipe: what was made before there were others keeps its name.
    own = {"head": asdict(recipe)} if trained and recipe != HeadRecipe() else {}
    values = {
        "TEACHER": identity(parameters["TEACHER"]),
        "CORPUS": [identities(parameters["CORPUS"]), parameters["TEXT_FIELD"]],
        "precision": engine.mixed_precision if engine else default_precision()[0],
        **{key: parameters[key] for key in keys},
    }
    return values | own | cuts(parameters, "VOCABULARY")


def target_counts(loader: DataLoader, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How often each token may have to be predicted in the rows of `masked_lm_loaders`' training loader.

    Returns:
        (highest id + 1,) int64; 0 for special tokens, which are never hidden.
    """
    counts = id_counts(loader.dataset, tokenizer)
    counts[loader.collate_fn.special.numpy()] = 0
    return counts


def ensure_teacher(parameters: dict[str, Any], engine: Engine | None = None, recipe: HeadRecipe = HEAD) -> Trained:
    """The teacher with a masked-LM head that works.

    A checkpoint that has its head is taken as it is. Where the head is missing, the model is trained on CORPUS for
    TEACHER_STEPS of TEACHER_BATCH_SIZE, once: ``OUTPUT_DIR/02_student_extraction/teacher-<fingerprint>`` keeps it.
    SEED and BATCH_SIZE have no part in it, so that students of several seeds and batches have one teacher.

    Args:
        parameters: checked parameters.
        engine: where and in which precision to train it; None takes an engine of its own. A head that was trained in
            another precision is another.
        recipe: how to train it. A head of another recipe is another, too.
    """
    model, tokenizer = prepare_teacher(parameters)
    values = _teacher_values(parameters, trained=True, engine=engine, recipe=recipe)
    folder = from_root(parameters["OUTPUT_DIR"]) / "02_student_extraction" / f"teacher-{fingerprint(values)}"
    if not head_is_untrained(model):
        return Trained(model, tokenizer, None, folder, 0.0)

    def make() -> Trained:
        steps = parameters["TEACHER_STEPS"]
        settings = {**parameters, "BATCH_SIZE": parameters["TEACHER_BATCH_SIZE"]}
        loaders = corpus_loaders(settings, tokenizer, steps, TEACHER_SEED)
        if recipe.token_frequencies and model.get_output_embeddings().bias is not None:
            start_head(model, target_counts(loaders["train"], tokenizer))
        own_engine, start = engine or Engine(), time.perf_counter()
        history = train_masked_lm(
            model,
            loaders,
            epochs=split_steps(steps)[0],
            learning_rate=recipe.learning_rate,
            seed=TEACHER_SEED,
            engine=own_engine,
            logdir=folder / "logs",
        )
        return Trained(model, tokenizer, history, folder, time.perf_counter() - start, recipe=recipe)

    card = partial(teacher_card, parameters, learning_rate=recipe.learning_rate)
    made = found_or_made(folder, values, "Teacher with a trained head", make, card)
    return replace(made, recipe=recipe)


def ensure_student(
    parameters: dict[str, Any], teacher: Trained, callbacks: Sequence[Callback] = (), engine: Engine | None = None
) -> Trained:
    """The student extracted from `teacher` (as `ensure_teacher` gives it) and distilled on CORPUS for MAX_STEPS.

    ``OUTPUT_DIR/03_runner/student-<fingerprint>`` keeps it, with the checkpoints and logs of the run under ``logs/``;
    a run that was interrupted goes on from there.

    Args:
        parameters: checked parameters.
        teacher: the teacher to extract from and to learn from.
        callbacks: further ones of the training, if there is one; see `training.fit`.
        engine: as `ensure_teacher`'s.
    """
    layers = chosen_layers(parameters["LAYERS"], teacher.model.config.num_hidden_layers)
    keys = ("BATCH_SIZE", "MAX_STEPS", "LEARNING_RATE", "TEMPERATURE", "LOSS_WEIGHTS", "SEED")
    values = _teacher_values(parameters, trained=teacher.history is not None, engine=engine, recipe=teacher.recipe)
    values |= {"LAYERS": layers, **{key: parameters[key] for key in keys}}
    values |= cuts(parameters, "STUDENT", "FEED_FORWARD")
    folder = from_root(parameters["OUTPUT_DIR"]) / "03_runner" / f"student-{fingerprint(values)}"

    def make() -> Trained:
        student = make_student(parameters, teacher)
        steps = parameters["MAX_STEPS"]
        loaders = corpus_loaders(parameters, teacher.tokenizer, steps, parameters["SEED"])
        own_engine, start = engine or Engine(), time.perf_counter()
        history = distill(
            teacher.model,
            student,
            loaders,
            loss_weights=parameters["LOSS_WEIGHTS"],
            temperature=parameters["TEMPERATURE"],
            epochs=split_steps(steps)[0],
            learning_rate=parameters["LEARNING_RATE"],
            seed=parameters["SEED"],
            engine=own_engine,
            logdir=folder / "logs",
            callbacks=callbacks,
        )
        return Trained(student, teacher.tokenizer, history, folder, time.perf_counter() - start)

    card = partial(student_card, parameters, layers=layers)
    return found_or_made(folder, values, "Distilled student", make, card)
