"""What `catalyst-run` needs beside the other modules: checked parameters, and parts that a config file can name.

hydra-slayer, which builds the objects of a config, calls an attribute that can be called
(``{_var_: trained.tokenizer}`` would tokenize); hence the small functions here that hand out a part.
"""

from __future__ import annotations

import difflib
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

from helpers.engine import is_main_process
from helpers.experiment import Trained, chosen_layers, corpus_loaders, split_steps
from helpers.experiment import card as experiment_card
from helpers.models import MaskedPositionLM, extract_student
from helpers.records import fingerprint, from_root, identity
from helpers.settings import check_parameters
from helpers.training import SEED_STRIDE, warmup_steps

PIPELINE = Path("notebooks/configs/distill.yml")
"""The config that others are merged over; its sections are those that there are."""


def parameters(**values) -> SimpleNamespace:
    """The notebooks' parameters, checked, and what follows from them.

    The whole config is checked too: every section, target and argument has to exist. What is wrong ends the process
    with one message, before any work.

    Args:
        values: by their names in the notebooks; those of a distillation.

    Returns:
        An object with each parameter by its name, and ``values`` (all of them), ``settings`` (those that tell the run
        from others), ``config`` (the merged config), ``sources`` (the files it came from), ``epochs``, ``steps``,
        ``warmup_steps``, ``seed`` (Catalyst's) and ``logdir``.
    """
    sources = [Path(file) for file in parse_args()[0]["configs"]]
    config = process_configs(sources)
    faults = [*config_faults(config), *_value_faults(values)]
    if faults:
        sys.exit("\n".join(f"{sources[-1]}: {fault}" for fault in faults))
    epochs, steps_per_epoch = split_steps(values["MAX_STEPS"])
    settings = {name: value for name, value in values.items() if name != "OUTPUT_DIR"}
    contents = {key: identity(values[key]) for key in ("TEACHER", "CORPUS")}
    name = fingerprint({**config, "parameters": settings | contents})
    logdir = from_root(values["OUTPUT_DIR"]) / "05_multi_gpu_launch" / f"student-{name}"
    if is_main_process():
        print(f"Logdir: {logdir.parent.name}/{logdir.name} in OUTPUT_DIR.")
    return SimpleNamespace(
        **values,
        values=values,
        config=config,
        settings=settings,
        sources=sources,
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
    for name in ("BATCH_SIZE", "TEACHER_BATCH_SIZE"):
        if values[name] % processes:
            yield f"{name} is {values[name]}: {processes} processes cannot share it evenly. Make it a multiple."
    if values["CORPUS"] != "bundled" and not from_root(values["CORPUS"]).is_file():
        yield f"CORPUS is {values['CORPUS']}: no such file."


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f". There are: {', '.join(sorted(known))}."


def config_faults(config: dict[str, Any]) -> Iterator[str]:
    """What a merged config names that is not there, with the nearest that is."""
    sections = process_configs([from_root(PIPELINE)])
    for name in config:
        if name not in sections:
            yield f"there is no section {name!r}{_near(name, sections)}"
    yield from _target_faults(config, "")
    for call in config.get("run", []):
        runner = pydoc.locate(config["runner"]["_target_"])
        method = getattr(runner, call["_call_"], None)
        if method is not None:
            yield from _argument_faults(method, set(call) - {"_call_"}, "run")
        elif runner is not None:
            yield f"run: {runner.__name__} has no {call['_call_']!r}{_near(call['_call_'], dir(dl.Runner))}"


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
            yield f"{where}: {getattr(target, '__name__', target)} takes no {name!r}{_near(name, known)}"


def _nearest_target(name: str) -> str:
    """The nearest name in the last part of the path that is there."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found = pydoc.locate(".".join(parts[:length]))
        if found is not None:
            known = [*dir(found), *(module.name for module in pkgutil.iter_modules(getattr(found, "__path__", [])))]
            known = [each for each in known if not each.startswith("_")]
            near = difflib.get_close_matches(parts[length], known, n=1)
            return f"; did you mean {'.'.join([*parts[:length], near[0]])}?" if near else ""
    return ""


def tokenizer(trained: Trained):
    """The tokenizer of what `ensure_teacher` gives."""
    return trained.tokenizer


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


def loaders(trained: Trained, values: dict[str, Any]) -> dict:
    """Dict batches of CORPUS under ``"train"`` and ``"valid"``."""
    return corpus_loaders(values, trained.tokenizer, values["MAX_STEPS"], values["SEED"])
