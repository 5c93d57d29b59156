"""A control alone: the KL loss at every attended position, in place of the masked ones."""

from __future__ import annotations

import torch
from helpers.callbacks import KLDivLossCallback
from helpers.data import IGNORED
from helpers.losses import kl_div_loss
from helpers.runner import DistilMLMRunner, distillation_models
from helpers.training import fit, masked_lm_measures


class EveryPositionRunner(DistilMLMRunner):
    """Leaves logits of all attended positions in the batch, too: `s_everywhere`, `t_everywhere`.

    Each is (attended, vocabulary). What the other callbacks read is that of the masked positions.
    """

    def handle_batch(self, batch):
        attended = batch["attention_mask"].bool()
        everywhere = torch.where(attended, batch["input_ids"], IGNORED)
        super().handle_batch({**batch, "labels": everywhere})
        masked = (batch["labels"] != IGNORED)[attended]
        for who in ("s", "t"):
            logits = self.batch[f"{who}_logits"]
            self.batch |= {f"{who}_everywhere": logits, f"{who}_logits": logits[masked]}
        self.batch["labels"] = batch["labels"]


class EveryPositionKLCallback(KLDivLossCallback):
    """`losses.kl_div_loss` over all attended positions."""

    def count(self, batch):
        own = batch["attention_mask"].sum()
        return own, batch.get("step_attended", own)

    def measure(self, batch, count):
        student, teacher = batch["s_everywhere"], batch["t_everywhere"]
        return kl_div_loss(student, teacher, self.temperature, count)


def distill_everywhere(teacher, student, loaders, *, loss_weights, temperature, **options):
    """`training.distill`, but for the positions of the KL loss."""
    kl = EveryPositionKLCallback(temperature=temperature)
    measures = {**masked_lm_measures(loss_weights, temperature), "kl": kl}
    models = distillation_models(teacher, student, loss_weights, options["seed"])
    options = {"name": "distillation", **options}
    return fit(EveryPositionRunner(), models, measures, loaders, **options)
