"""The model card of what was trained here, as the Hugging Face hub reads it. Knows nothing of training."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from helpers.data import source_name
from helpers.runs.records import from_root

PACKAGED_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
"""What ``"minilm"`` is called on the hub."""
VALIDATION_PART = "validation part, held out here"
VERSIONS = ("torch", "catalyst", "transformers", "accelerate", "datasets")
METRICS = {
    "f1": "macro F1",
    "accuracy": "accuracy",
    "loss": "weighted sum of the losses",
    "perplexity": "perplexity over the tokens to be predicted",
    "mlm": "masked-LM cross-entropy",
    "kl": "KL divergence from the teacher's distribution",
}
"""What the metrics are, where the hub's names for them could mean something else too."""
USES = {
    "fill-mask": 'fill = pipeline("fill-mask", model="this folder")\n'
    'fill(f"A text with a {fill.tokenizer.mask_token} in it.")',
    "text-classification": 'pipeline("text-classification", model="this folder", truncation=True)("A text.")',
}


def model_card(
    title: str,
    task: str,
    what: str,
    *,
    teacher: str,
    corpus: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    split: str = "held out here",
) -> ModelCard:
    """Say what a model is, what it was made from and how, and how good it is.

    The metrics are of texts that were held out here. The card says so wherever the hub may show them, so that nobody
    takes them for results on the test set of a data set of that name.

    Args:
        title: the card's heading.
        task: the hub's name of the task: ``"fill-mask"`` or ``"text-classification"``.
        what: a sentence on how the model was made.
        teacher: as the parameter TEACHER has it; of a folder, its last part alone is told.
        corpus: what the metrics were measured on: a file, of which the name is told, or a name on the hub.
        settings: what else it was made with, by name.
        metrics: on texts that it was not trained on, by name.
        split: what these texts are: of `corpus`, but no split that others use.
    """
    on_disk = from_root(teacher).exists()
    shown = PACKAGED_TEACHER if teacher == "minilm" else from_root(teacher).name if on_disk else teacher
    corpus = Path(corpus).name if from_root(corpus).exists() else corpus
    measured_on = {"dataset_type": "held-out", "dataset_name": f"{corpus} ({split})", "dataset_split": split}
    results = [
        EvalResult(
            task_type=task,
            metric_type=name,
            metric_name=METRICS.get(name, name),
            metric_args={"average": "macro"} if name == "f1" else None,
            metric_value=value,
            **measured_on,
        )
        for name, value in metrics.items()
    ]
    data = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag=task,
        tags=["distillation", "catalyst"],
        base_model=None if on_disk else shown,
        eval_results=results,
    )
    made = {"teacher": shown, "corpus": corpus, **settings}
    tables = {
        "What it was made with": {name: f"`{value}`" for name, value in made.items()},
        "What it reaches": {METRICS.get(name, name): f"{value:.4g}" for name, value in metrics.items()},
        "Versions": {"Python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }
    measured = f"Measured on texts of `{corpus}` ({split}). Others do not use this split: it is no benchmark's result."
    notes, sections = {"What it reaches": [measured, ""]}, []
    for heading, rows in tables.items():
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        sections.append("\n".join([f"## {heading}", "", *notes.get(heading, []), "| | |", "|---|---|", *lines]))
    use = f"```python\nfrom transformers import pipeline\n\n{USES[task]}\n```"
    return ModelCard("\n\n".join([f"---\n{data.to_yaml()}\n---", f"# {title}", what, use, *sections]) + "\n")


def teacher_card(
    parameters: Mapping[str, Any], title: str, steps: int, metrics: Mapping[str, float], learning_rate: float
) -> ModelCard:
    """The card of a teacher whose masked-LM head was trained here.

    Args:
        parameters: those that it was trained with.
        title: the card's heading.
        steps: optimizer steps that its weights have seen.
        metrics: of the validation part, by name.
        learning_rate: of that training.
    """
    what = "Its masked-LM head, which the checkpoint lacked, was trained together with its encoder."
    settings = _training(parameters, steps, ("VOCABULARY",))
    settings |= {"blocks in a batch": parameters["TEACHER_BATCH_SIZE"], "learning rate": learning_rate}
    return _masked_lm_card(parameters, title, what, settings, metrics)


def student_card(
    parameters: Mapping[str, Any], title: str, steps: int, metrics: Mapping[str, float], layers: list[int]
) -> ModelCard:
    """The card of a student of these layers of its teacher; the others as `teacher_card`'s."""
    weights = {name: weight for name, weight in parameters["LOSS_WEIGHTS"].items() if weight > 0}
    how = "trained by masked LM alone" if set(weights) == {"mlm"} else "distilled from it"
    shape = {"distilbert": "A DistilBERT of its teacher's layers", "same": "A model of its teacher's layers"}
    kind = parameters.get("STUDENT", "distilbert")
    what = f"{shape[kind]} {layers}, {how}." if kind in shape else f"A student with a shape of its own, {how}."
    settings = _training(parameters, steps, ("VOCABULARY", "FEED_FORWARD"))
    settings |= {"blocks in a batch": parameters["BATCH_SIZE"], "learning rate": parameters["LEARNING_RATE"]}
    settings |= {"losses": weights, "temperature": parameters["TEMPERATURE"], "seed": parameters["SEED"]}
    return _masked_lm_card(parameters, title, what, settings, metrics)


def _training(parameters: Mapping[str, Any], steps: int, cuts: tuple[str, ...]) -> dict[str, Any]:
    made = {"tokens in a block": parameters["MAX_LENGTH"], "steps": steps}
    return made | {name: parameters[name] for name in cuts if parameters.get(name) is not None}


def _masked_lm_card(
    parameters: Mapping[str, Any], title: str, what: str, settings: dict[str, Any], metrics: Mapping[str, float]
) -> ModelCard:
    corpus = "stanfordnlp/imdb" if parameters["CORPUS"] == "bundled" else source_name(parameters["CORPUS"])
    source = {"teacher": parameters["TEACHER"], "corpus": corpus}
    what += " The weights are those of the best validation, so the figures below may be a little too good."
    return model_card(title, "fill-mask", what, **source, settings=settings, metrics=metrics, split=VALIDATION_PART)


def add_table(card: ModelCard, heading: str, table: pd.DataFrame) -> None:
    """Put a table of texts under a heading at a card's end."""
    lines = [["", *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[str(name), *row] for name, row in zip(table.index, table.values.tolist(), strict=True)]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    card.content = f"{card.content.rstrip()}\n\n## {heading}\n\n{rows}\n"
