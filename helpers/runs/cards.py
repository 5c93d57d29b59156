"""The model card of what was trained here, as the Hugging Face hub reads it. Knows nothing of training."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from helpers.runs.records import from_root

PACKAGED_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
"""What ``"minilm"`` is called on the hub."""
VERSIONS = ("torch", "catalyst", "transformers", "accelerate", "datasets")
USES = {
    "fill-mask": 'pipeline("fill-mask", model="this folder")("A text with a [MASK] in it.")',
    "text-classification": 'pipeline("text-classification", model="this folder")("A text.")',
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
) -> ModelCard:
    """Say what a model is, what it was made from and how, and how good it is.

    Args:
        title: the card's heading.
        task: the hub's name of the task: ``"fill-mask"`` or ``"text-classification"``.
        what: a sentence on how the model was made.
        teacher: as the parameter TEACHER has it; of a folder, its last part alone is told.
        corpus: what the metrics were measured on: a file, of which the name is told, or a name on the hub.
        settings: what else it was made with, by name.
        metrics: on texts that it was not trained on, by name.
    """
    on_disk = from_root(teacher).exists()
    shown = PACKAGED_TEACHER if teacher == "minilm" else from_root(teacher).name if on_disk else teacher
    corpus = Path(corpus).name if from_root(corpus).exists() else corpus
    measured_on = {"dataset_type": corpus, "dataset_name": corpus}
    results = [
        EvalResult(task_type=task, metric_type=name, metric_value=value, **measured_on)
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
        "What it reaches": {name: f"{value:.4g}" for name, value in metrics.items()},
        "Versions": {"Python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }
    sections = []
    for heading, rows in tables.items():
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        sections.append("\n".join([f"## {heading}", "", "| | |", "|---|---|", *lines]))
    use = f"```python\nfrom transformers import pipeline\n\n{USES[task]}\n```"
    return ModelCard("\n\n".join([f"---\n{data.to_yaml()}\n---", f"# {title}", what, use, *sections]) + "\n")
