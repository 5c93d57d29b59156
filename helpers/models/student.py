"""The student: which layers of the teacher it keeps, its shape, and the weights that it starts with."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

from torch import Tensor
from transformers import BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM, PreTrainedModel

from helpers.models.families import family_of


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


LAYER_NORM_EPSILON = 1e-12
"""What a DistilBERT's LayerNorms add to the variance, as BERT's do by default: its configuration cannot say another."""


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


def same_state_dict(teacher: PreTrainedModel, layers: list[int]) -> dict[str, Tensor]:
    """The teacher's weights under the names of a model of its own class that keeps only `layers`."""
    prefix, student = f"{family_of(teacher).layers}.", {}
    for name, weight in teacher.state_dict().items():
        if not name.startswith(prefix):
            student[name] = weight
            continue
        old, part = name.removeprefix(prefix).split(".", 1)
        if int(old) in layers:
            student[f"{prefix}{layers.index(int(old))}.{part}"] = weight
    return student


def same_student(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A model of the teacher's own class with as many layers, its weights random."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):  # ModernBERT's: which tokens a layer sees
        config.layer_types = [config.layer_types[layer] for layer in layers]
    return type(teacher)(config)


KINDS = ("distilbert", "same")
"""What a student that is extracted may be; see `extract_student`."""


def check_student(teacher: PreTrainedModel, layers: list[int], student: str) -> None:
    """Raise a ValueError unless a student of this kind can be made of the teacher's `layers`; see `extract_student`."""
    check_layers(layers, teacher.config.num_hidden_layers)
    kind = teacher.config.model_type
    if student not in KINDS:
        raise ValueError(f"student={student!r}: choose 'distilbert' or 'same'.")
    if student == "distilbert" and kind not in ("bert", "distilbert"):
        raise ValueError(
            f"STUDENT is 'distilbert', but the teacher is a {kind!r}, whose layers do not fit one. Set STUDENT to "
            "'same', the teacher's own class, or to a folder or hub name."
        )
    if family_of(teacher).first_stays and layers[0] != 0:
        raise ValueError(
            f"LAYERS {layers}: layer 0 of a {kind!r} has no norm before its attention, unlike the others, so it has to "
            f"be the first: name it too, such as {[0, *layers[1:]]}."
        )


def extract_student(
    teacher: PreTrainedModel, layers: list[int], weights: str = "teacher", student: str = "distilbert"
) -> PreTrainedModel:
    """Build a student from some of a teacher's layers.

    Args:
        teacher: a masked-LM model of `families.FAMILIES`; it is left as it is.
        layers: ascending indices of the layers that the student keeps. Taking all gives the teacher's logits. Of a
            DistilBERT student that holds for single texts (see `student_state_dict` for pairs), provided that the
            teacher's LayerNorms have the epsilon of DistilBERT's, `LAYER_NORM_EPSILON`. With another, the student
            computes nearly the same, and a warning says so: in memory it has the epsilon that it will have when it is
            loaded again.
        weights: ``"teacher"`` copies embeddings, layers and head (the article's initialization); ``"embeddings"`` all
            but the layers; ``"random"`` nothing. What is not copied gets the student's own random initialization, from
            torch's global seed.
        student: ``"distilbert"`` of a BERT (or of a DistilBERT, whose own class that is); ``"same"`` is the teacher's
            own class: a BERT keeps its token types, and so it tells the two texts of a pair apart.

    Returns:
        The student in eval mode, float32, sharing no memory with the teacher. Its config names the layers that it was
        copied from as ``teacher_layers``.

    Raises:
        ValueError: layers out of range, repeated, not ascending or none; a ModernBERT without its layer 0; a
            DistilBERT of another teacher; or unknown `weights` or `student`.
    """
    check_student(teacher, layers, student)
    if weights not in ("teacher", "embeddings", "random"):
        raise ValueError(f"weights={weights!r}: choose 'teacher', 'embeddings' or 'random'.")
    if student == "distilbert" and teacher.config.model_type == "bert":
        if weights == "teacher" and teacher.config.layer_norm_eps != LAYER_NORM_EPSILON:
            warnings.warn(
                f"The teacher's LayerNorms have the epsilon {teacher.config.layer_norm_eps:g}. A DistilBERT's always "
                f"have {LAYER_NORM_EPSILON:g}, so even a copy of all layers gives logits that differ a little.",
                stacklevel=2,
            )
        made, copied = DistilBertForMaskedLM(student_config(teacher, len(layers))), student_state_dict
    else:
        made, copied = same_student(teacher, layers), same_state_dict
    if weights == "teacher":  # strict: every weight of the student is copied
        made.load_state_dict(copied(teacher, layers))
        made.config.teacher_layers = list(layers)
    elif weights == "embeddings":
        made.load_state_dict(made.state_dict() | copied(teacher, []))
    return made.eval()
