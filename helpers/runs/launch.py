"""What `catalyst-run` needs beside the other modules: checked parameters, and parts that a config file can name.

hydra-slayer, which builds the objects of a config, calls an attribute that can be called
(``{_var_: trained.tokenizer}`` would tokenize); hence the small functions here that hand out a part.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import pydoc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from catalyst import dl
from catalyst.contrib.scripts.run import parse_args, process_configs
from huggingface_hub import ModelCard

from helpers.callbacks import LOSSES, TASK_LOSSES
from helpers.catalyst_today.engine import is_main_process
from helpers.models import MaskedPositionLM, extract_student
from helpers.runs.experiment import Trained, chosen_layers, corpus_loaders, split_steps
from helpers.runs.experiment import card as experiment_card
from helpers.runs.parameters import check_parameters, did_you_mean
from helpers.runs.records import fingerprint, from_root, with_contents, without_output_dir
from helpers.runs.task import Task
from helpers.training import SEED_STRIDE, warmup_steps

PIPELINES = (Path("notebooks/configs/distill.yml"), Path("notebooks/configs/sentiment.yml"))
"""The configs that others are merged over; their sections are those that there are."""


def parameters(makes: str = "student", **values) -> SimpleNamespace:
    """The notebooks' parameters, checked, and what follows from them.

    The whole config is checked too: every section, target and argument has to exist. What is wrong ends the process
    with one message, before any work.

    Args:
        makes: what the run makes, with which the name of its logdir begins.
        values: by their names in the notebooks.

    Returns:
        An object with each parameter by its name, and ``values`` (all of them), ``settings`` (those that tell the run
        from others), ``config`` (the merged config), ``sources`` (the files it came from), ``loss_weights`` (those
        above zero), ``epochs``, ``steps`` and ``warmup_steps`` of a distillation, ``seed`` (Catalyst's) and ``logdir``.
    """
    sources = [Path(file) for file in parse_args()[0]["configs"]]
    config = process_configs(sources)
    faults = [*config_faults(config), *_value_faults(values)]
    if faults:
        sys.exit("\n".join(f"{sources[-1]}: {fault}" for fault in faults))
    epochs, steps_per_epoch = split_steps(values["MAX_STEPS"])
    name = fingerprint({**config, "parameters": with_contents(values)})
    logdir = from_root(values["OUTPUT_DIR"]) / "05_multi_gpu_launch" / f"{makes}-{name}"
    if is_main_process():
        print(f"Logdir: {logdir.parent.name}/{logdir.name} in OUTPUT_DIR.")
    return SimpleNamespace(
        **values,
        values=values,
        config=config,
        settings=without_output_dir(values),
        sources=sources,
        loss_weights={name: weight for name, weight in values["LOSS_WEIGHTS"].items() if weight > 0},
        epochs=epochs,
        steps=epochs * steps_per_epoch,
        warmup_steps=warmup_steps(epochs * steps_per_epoch),
        seed=SEED_STRIDE * values["SEED"],
        logdir=str(logdir),
    )


def _value_faults(values: dict[str, Any]) -> Iterator[str]:
    try:
        check_parameters(values)
    except ValueError as error:
        yield str(error)
        return
    processes = int(os.environ.get("WORLD_SIZE", 1))
    for name in ("BATCH_SIZE", "TEACHER_BATCH_SIZE", "FINE_TUNING_BATCH_SIZE"):
        if values.get(name, 0) % processes:
            yield f"{name} is {values[name]}: {processes} processes cannot share it evenly. Make it a multiple."
    for name in ("CORPUS", "LABELLED_CORPUS"):
        files = values.get(name, "bundled")
        for file in files.values() if isinstance(files, dict) else [files]:
            if file != "bundled" and not from_root(file).is_file():
                yield f"{name} is {file}: no such file."


def config_faults(config: dict[str, Any]) -> Iterator[str]:
    """What a merged config names that is not there, with the nearest that is."""
    sections = {name for pipeline in PIPELINES for name in process_configs([from_root(pipeline)])}
    for name in config:
        if name not in sections:
            yield f"there is no section {name!r}{did_you_mean(name, sorted(sections))}"
    yield from _target_faults(config, "")
    for call in config.get("run", []):
        runner = pydoc.locate(config["runner"]["_target_"])
        method = getattr(runner, call["_call_"], None)
        if method is not None:
            yield from _argument_faults(method, set(call) - {"_call_"}, "run")
        elif runner is not None:
            yield f"run: {runner.__name__} has no {call['_call_']!r}{did_you_mean(call['_call_'], dir(dl.Runner))}"


def _target_faults(value, where: str) -> Iterator[str]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _target_faults(child, f"{where}.{key}".strip("."))
    if isinstance(value, dict) and "_target_" in value:
        target = pydoc.locate(value["_target_"])
        if target is None:
            yield f"{where}: there is no {value['_target_']}{_nearest_target(value['_target_'])}"
        else:
            yield from _argument_faults(target, set(value) - {"_target_", "_var_", "_mode_"}, where)
            if inspect.isfunction(target) and "_mode_" not in value:
                yield f"{where}: {value['_target_']} is a function, which needs '_mode_: call' to be called"


def _argument_faults(target, given: set[str], where: str) -> Iterator[str]:
    known = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for name in sorted(given - set(known)):
            yield f"{where}: {getattr(target, '__name__', target)} takes no {name!r}{did_you_mean(name, known)}"


def _nearest_target(name: str) -> str:
    """The nearest name in the first part of the path that is not there."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found = pydoc.locate(".".join(parts[:length]))
        if found is not None:
            known = [*dir(found), *(module.name for module in pkgutil.iter_modules(getattr(found, "__path__", [])))]
            known = [each for each in known if not each.startswith("_")]
            return did_you_mean(".".join(parts[: length + 1]), [".".join([*parts[:length], each]) for each in known])
    return ""


def with_weight(weights: dict[str, float], **callbacks: dl.Callback) -> dict[str, dl.Callback]:
    """The callbacks without those of losses that have no weight: these are not computed."""
    left_out = {*LOSSES, *TASK_LOSSES} - set(weights)
    return {name: callback for name, callback in callbacks.items() if name not in left_out}


def tokenizer(made: Trained | Task):
    """The tokenizer of what `ensure_teacher`, or `task`, gives."""
    return made.tokenizer


def teacher(trained: Trained) -> MaskedPositionLM:
    """The teacher, as the runner takes it."""
    return MaskedPositionLM(trained.model)


def student(trained: Trained, layers: int | list[int]) -> MaskedPositionLM:
    """A student of some of the teacher's layers, as the runner takes it."""
    chosen = chosen_layers(layers, trained.model.config.num_hidden_layers)
    return MaskedPositionLM(extract_student(trained.model, chosen))


def card(trained: Trained, values: dict[str, Any], logdir: str) -> Callable[[int, dict[str, float]], ModelCard]:
    """From steps and validation metrics to the student's model card."""
    layers = chosen_layers(values["LAYERS"], trained.model.config.num_hidden_layers)
    return partial(experiment_card, values, Path(logdir).name, layers=layers)


def classifier(task: Task):
    """The classifier that is to be trained."""
    return task.classifier


def task_card(task: Task) -> Callable[[int, dict[str, float]], ModelCard]:
    """From steps and validation metrics to the classifier's model card."""
    return task.card


def loaders(trained: Trained, values: dict[str, Any]) -> dict:
    """Dict batches of CORPUS under ``"train"`` and ``"valid"``."""
    return corpus_loaders(values, trained.tokenizer, values["MAX_STEPS"], values["SEED"])
