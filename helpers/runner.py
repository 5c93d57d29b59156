"""What a runner does with one batch. Knows nothing of which losses are used."""

from __future__ import annotations

import torch
from catalyst import dl
from transformers import PreTrainedModel

from helpers.models import MaskedPositionLM, Projection


class MaskedLMRunner(dl.Runner):
    """Run one masked-LM model on a batch and leave its output in ``self.batch``, for the callbacks.

    The model is a `MaskedPositionLM`.
    """

    def handle_batch(self, batch):
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        logits, hidden_states = self.model(**inputs)
        self.batch = {**batch, "s_logits": logits, "s_hidden_states": hidden_states}


def distillation_models(
    teacher: PreTrainedModel, student: PreTrainedModel, loss_weights: dict[str, float], seed: int
) -> dict[str, torch.nn.Module]:
    """What `DistilMLMRunner` takes: both models and, where the hidden loss needs one, a projection that `seed` starts.

    The projection is an entry of its own: it is trained along with the student and not saved with it.
    """
    models = {"teacher": MaskedPositionLM(teacher), "student": MaskedPositionLM(student)}
    widths = student.config.hidden_size, teacher.config.hidden_size
    if loss_weights.get("hidden", 0) > 0 and widths[0] != widths[1]:
        models["projection"] = Projection(*widths, seed)
    return models


class DistilMLMRunner(dl.Runner):
    """Run teacher and student on a batch and leave what they give in ``self.batch``, for the callbacks.

    The model is a dict, as `distillation_models` makes it: Catalyst prepares each for
    itself, so that what is trained, and it alone, gets its gradients synchronised when there are several processes. The
    teacher is frozen and in eval mode, without dropout, whatever Catalyst does to it.
    """

    def get_model(self):
        model = super().get_model()
        model["teacher"].requires_grad_(False)
        return model

    def on_loader_start(self, runner):
        super().on_loader_start(runner)
        # Catalyst has just put every model of the dict into train mode.
        self.model["teacher"].eval()

    def handle_batch(self, batch):
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        with torch.no_grad():
            t_logits, t_hidden_states = self.model["teacher"](**inputs)
        s_logits, s_hidden_states = self.model["student"](**inputs)
        self.batch = {
            **batch,
            "t_logits": t_logits,
            "t_hidden_states": t_hidden_states,
            "s_logits": s_logits,
            "s_hidden_states": s_hidden_states,
        }


class ClassifierRunner(dl.Runner):
    """Run a classifier on a batch and leave its logits in ``self.batch``, for the callbacks.

    The model takes ``input_ids`` and ``attention_mask`` and gives an output with ``logits`` (batch, classes).
    """

    def handle_batch(self, batch):
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        self.batch = {**batch, "s_logits": logits}
