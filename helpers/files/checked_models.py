"""A model and its tokenizer from a folder or the hub, looked at before any work: do they fit each other?"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from helpers.files.model_folder import check_model_folder
from helpers.files.tokenizer_checks import check_tokenizer


@contextmanager
def quiet_transformers():
    """No progress bars and no load report: what they say of a missing head, `load_teacher` deals with."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def read_config(source: str | Path, what: str) -> PreTrainedConfig:
    """Read a model's configuration; of a local folder, look at all its files first.

    Args:
        source: a local folder, or a name on the Hugging Face hub.
        what: the model as messages name it: the parameter and its value.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub gives out, or a file is missing.
        ValueError: a file is damaged, the configuration is of no model that `transformers` knows, or says that the
            model reads to the left alone.
    """
    if Path(source).is_dir():
        check_model_folder(Path(source), what)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{what} is no folder with a config.json, and the hub gives no such model or cannot be reached. Without a "
            "network, take a local folder, TEACHER = 'minilm', or BASELINE = 'minilm-l3'."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{what}: transformers cannot read its config.json: {_first_line(error)}. Take one that it knows."
        ) from error
    if getattr(config, "is_decoder", False):
        raise ValueError(
            f"{what}: config.json says is_decoder, with which each token sees only those before it. Masked words need "
            "both sides: take an encoder. If this model was trained as one, set is_decoder to false."
        )
    config.return_dict = True  # a mere form of the outputs, which are read by their names here
    return config


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")


def load_checked(
    kind: type,
    source: str | Path,
    config: PreTrainedConfig,
    what: str,
    *,
    tokens: tuple[str, ...] = ("pad_token",),
    max_length: int | None = None,
    **options,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load a model and its tokenizer, and find out whether they fit each other and what is to be done with them.

    Args:
        kind: the class of `transformers` that loads it.
        source, what: as in `read_config`.
        config: from `read_config`.
        tokens: the special tokens that the tokenizer has to have, by their names in `transformers`.
        max_length: how many tokens the model has to take.
        options: further ones for ``from_pretrained``.

    Returns:
        (model in float32 and eval mode, tokenizer, the names of the weights that the checkpoint lacks: of its head).

    Raises:
        ValueError: weights or tokenizer cannot be read, weights of the encoder are missing or of another shape, or
            `check_tokenizer` or `check_length` finds a fault.
    """
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
    except UnpicklingError as error:
        raise ValueError(
            f"{what}: its .bin file is damaged or holds more than tensors. Nothing else is unpickled here, since that "
            "can run code. Save the model as safetensors."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{what}: its weights cannot be loaded, or do not fit config.json: {_first_line(error)}. Fetch them again."
        ) from error
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each tokenizer raises its own, the fast ones a bare Exception
        raise ValueError(
            f"{what}: its tokenizer cannot be loaded: {_first_line(error)}. Fetch its files again, or install what it "
            "needs."
        ) from error
    encoder = f"{model.base_model_prefix}."
    names = [*report["missing_keys"], *(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])]
    lacking = sorted(name for name in names if name.startswith(encoder) and ".pooler." not in name)
    if lacking:
        raise ValueError(
            f"{what}: the checkpoint lacks {len(lacking)} weights of the encoder, or has them in another shape than "
            f"config.json says, {lacking[0]} first. Fetch the model again."
        )
    check_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, what, tokens)
    check_length(model, what, max_length)
    return model.eval(), tokenizer, sorted(set(names) - set(lacking))


def check_length(model: PreTrainedModel, what: str, max_length: int | None) -> None:
    """Raise a ValueError if a model, which messages name as `what`, cannot take that many tokens."""
    most = positions(model)
    if max_length and most and max_length > most:
        raise ValueError(
            f"MAX_LENGTH is {max_length}, but {what} takes {most} tokens at most. Set it to {most} or less."
        )


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model takes in a row; None where its configuration sets no limit."""
    most = getattr(model.config, "max_position_embeddings", None) or 0
    tables = (module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings"))
    offset = getattr(next(tables, None), "padding_idx", None)  # RoBERTa counts from behind it
    return (most if offset is None else most - offset - 1) if most > 0 else None
