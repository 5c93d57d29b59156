"""What `catalyst-run` needs beside the other modules: checked parameters, and parts that a config file can name.

hydra-slayer, which builds the objects of a config, calls an attribute that can be called
(``{_var_: trained.tokenizer}`` would tokenize); hence the small functions here that hand out a part.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import pydoc
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from catalyst import dl
from catalyst.contrib.scripts.run import parse_args, process_configs
from catalyst.core.callback import Callback, CallbackOrder
from catalyst.utils import load_config
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from helpers.callbacks import LOSSES, TASK_LOSSES
from helpers.catalyst_today.engine import is_main_process
from helpers.data import files_of
from helpers.models import MaskedPositionLM
from helpers.runner import DistilMLMRunner, MaskedLMRunner, distillation_models
from helpers.runs.cards import student_card
from helpers.runs.experiment import Trained, chosen_layers, corpus_loaders, make_student, split_steps
from helpers.runs.parameters import check_parameters, did_you_mean, uneven
from helpers.runs.records import below_root, fingerprint, from_root, texts_from_root, with_contents, without_output_dir
from helpers.runs.task import Task, check_choices
from helpers.training import run_seed, warmup_steps

PIPELINES = (Path("notebooks/configs/distill.yml"), Path("notebooks/configs/sentiment.yml"))
"""The configs that others are merged over; their sections are those that there are."""


def end_with(sentence: str) -> None:
    """Make a sentence the last thing that a run says; under torchrun in its report, and once, not once a process."""
    sys.stdout.flush()
    if not (report := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        print(sentence, file=sys.stderr)
        return
    first = Path(report).parents[1] / "0" / Path(report).name  # torchrun has a folder for each process of a machine
    if first != Path(report):
        time.sleep(5)
        if first.exists():  # what stopped this process has stopped that one, too
            return
    Path(report).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
    os._exit(1)  # to leave the group of processes in order would take waiting for the others


def _end_with_error(kind, error, trace) -> None:
    """In place of a traceback: the error alone, in one line that names the file with the traceback."""
    if issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    lines = traceback.format_exception(kind, error, trace)
    while str(error).startswith("Factory '") and error.__cause__ is not None:  # what hydra-slayer has put around it
        error = error.__cause__
    options = {"prefix": "catalyst-run-", "suffix": ".txt", "delete": False, "encoding": "utf-8"}
    with tempfile.NamedTemporaryFile("w", **options) as file:
        file.writelines(lines)
    end_with(f"{type(error).__name__}: {' '.join(str(error).split())} (traceback: {file.name})")


def _stop(faults: list[str]) -> None:
    """End the process with what is wrong, if anything is."""
    if faults:
        end_with("\n".join(faults))
        sys.exit(1)


def files() -> list[Path]:
    """The config files of the command line, each section of the kind that the pipelines' own is of.

    From here on, an error ends the process with one sentence as its last line.
    """
    sys.excepthook = _end_with_error
    sources = [Path(file) for file in parse_args()[0]["configs"]]
    kinds = process_configs(map(from_root, PIPELINES))
    faults = []
    for source in sources:
        for name, section in load_config(source, ordered=True).items():
            if isinstance(kinds.get(name), dict) and not isinstance(section, dict):
                found = "empty" if section is None else f"{section!r}"
                faults.append(f"{source}: section {name!r} is {found}: write names and values under it, or drop it.")
    if not faults and _bare_parameters(sources[0]):
        faults.append(f"{sources[0]}: a parameter file changes the values of a pipeline; name the pipeline before it.")
    _stop(faults)
    return sources


def _bare_parameters(source: Path) -> dict[str, Any]:
    """The parameters that a file gives outside any section, as papermill's parameter files do."""
    return {name: value for name, value in load_config(source, ordered=True).items() if name.isupper()}


def _config(sources: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The files merged, and of the parameters those that this pipeline does not have.

    The value of a parameter is the last file's as a whole, as papermill has it. One in capitals outside any section is
    read as if it stood under ``parameters``; where no file's section has its name, it is one of other notebooks alone.
    """
    config = process_configs(sources)
    own, others = config["parameters"], {}
    for source in sources:
        inside = load_config(source, ordered=True).get("parameters", {})
        own |= {name: value for name, value in inside.items() if name.isupper()}
        for name, value in _bare_parameters(source).items():
            config.pop(name, None)
            (own if name in own else others)[name] = value
    return config, others


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
    sources = files()
    config, others = _config(sources)
    values |= {name: value for name, value in config["parameters"].items() if name.isupper()}
    _stop([f"{sources[-1]}: {fault}" for fault in (*config_faults(config), *_value_faults(values, others))])
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
        seed=run_seed(values["SEED"]),
        logdir=str(logdir),
    )


def _value_faults(values: dict[str, Any], others: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the values, or with others; those in another type than they are meant to have are replaced."""
    try:
        checked = check_parameters(others | values)
    except ValueError as error:
        yield from str(error).splitlines()
        return
    values |= {name: value for name, value in checked.items() if name in values}
    processes = int(os.environ.get("WORLD_SIZE", 1))
    for name in ("BATCH_SIZE", "TEACHER_BATCH_SIZE", "FINE_TUNING_BATCH_SIZE"):
        if fault := uneven(name, values.get(name, 0), processes):
            yield fault
    for name in ("CORPUS", "LABELLED_CORPUS"):
        source = values.get(name, "bundled")
        for each in source.values() if isinstance(source, dict) else [source]:
            try:
                each == "bundled" or files_of(texts_from_root(each))
            except (FileNotFoundError, ValueError) as error:
                yield f"{name}: {error}"


def config_faults(config: dict[str, Any]) -> Iterator[str]:
    """What a merged config names that is not there, with the nearest that is."""
    sections = {name for pipeline in PIPELINES for name in process_configs([from_root(pipeline)])}
    for name in config:
        if name not in sections:
            yield f"there is no section {name!r}{did_you_mean(name, sorted(sections))}"
    yield from _target_faults(config, "")
    for call in config.get("run", []):
        found = pydoc.locate(config["runner"]["_target_"])
        kind = dl.Runner if inspect.isfunction(found) else found  # a function that chooses one
        method = getattr(kind, call["_call_"], None)
        if method is not None:
            yield from _argument_faults(method, set(call) - {"_call_"}, "run")
        elif kind is not None:
            yield f"run: {kind.__name__} has no {call['_call_']!r}{did_you_mean(call['_call_'], dir(dl.Runner))}"
    if "task" in config:
        yield from check_choices(config["task"].get("start"), config["task"].get("taught_by"))


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


class EndCallback(Callback):
    """Say last where the model is, in a path that can be pasted.

    Args:
        logdir: the run's folder.
        kept: the folder of the weights in it, ``best`` or ``last``.
    """

    def __init__(self, logdir: str | Path, kept: str):
        super().__init__(order=CallbackOrder.External + 12)  # after all others
        self.folder = Path(logdir) / kept

    def on_experiment_end(self, runner) -> None:
        if runner.engine.is_main_process:
            print(f"The model: {below_root(self.folder)}")


def tokenizer(made: Trained | Task):
    """The tokenizer of what `ensure_teacher`, or `task`, gives."""
    return made.tokenizer


def teacher(trained: Trained) -> PreTrainedModel:
    """The teacher."""
    return trained.model


def student(trained: Trained, values: dict[str, Any]) -> PreTrainedModel:
    """The student that the parameters describe."""
    return make_student(values, trained)


def runner(weights: dict[str, float]) -> dl.Runner:
    """The runner of these losses: masked LM alone does not need the teacher, so it is not run."""
    return MaskedLMRunner() if set(weights) == {"mlm"} else DistilMLMRunner()


def model(weights: dict[str, float], teacher: PreTrainedModel, student: PreTrainedModel, seed: int):
    """What that runner takes."""
    if set(weights) == {"mlm"}:
        return MaskedPositionLM(student)
    return distillation_models(teacher, student, weights, seed)


def card(trained: Trained, values: dict[str, Any], logdir: str) -> Callable[[int, dict[str, float]], ModelCard]:
    """From steps and validation metrics to the student's model card."""
    layers = chosen_layers(values["LAYERS"], trained.model.config.num_hidden_layers)
    return partial(student_card, values, Path(logdir).name, layers=layers)


def classifier(task: Task):
    """The classifier that is to be trained."""
    return task.classifier


def task_card(task: Task) -> Callable[[int, dict[str, float]], ModelCard]:
    """From steps and validation metrics to the classifier's model card."""
    return task.card


def loaders(trained: Trained, values: dict[str, Any]) -> dict:
    """Dict batches of CORPUS under ``"train"`` and ``"valid"``."""
    return corpus_loaders(values, trained.tokenizer, values["MAX_STEPS"], values["SEED"])
