"""What happens to one batch. Knows nothing of which losses are used."""

from __future__ import annotations

import torch
from catalyst import dl

from helpers.callbacks import masked_targets
from helpers.losses import masked_lm_loss
from helpers.processor import fast_training
from helpers.steps import check_finite


class MaskedLMRunner(dl.Runner):
    """Masked-LM training of one `MaskedPositionLM`: Catalyst's custom runner at its smallest."""

    def run(self):
        with fast_training(self._model.model):
            return super().run()

    def on_loader_start(self, runner):
        super().on_loader_start(runner)
        self.sums = torch.zeros(2, dtype=self.engine.sum_dtype, device=self.engine.device)

    def handle_batch(self, batch):
        logits, _ = self.model(**batch)
        targets = masked_targets(batch)
        count = self.engine.own_share(len(targets)) if self.is_train_loader else max(len(targets), 1)
        loss = masked_lm_loss(logits, targets, count)
        step = (self.epoch_step - 1) * self.loader_batch_len + self.loader_batch_step // self.engine.num_processes
        check_finite(loss, f"step {step}" if self.is_train_loader else f"validation {self.epoch_step}")
        self.batch_metrics["loss"] = loss
        self.sums[0] += loss.detach() * count
        self.sums[1] += len(targets)
        if self.is_train_loader:
            self.engine.backward(loss)
            self.engine.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            if not self.engine.optimizer_step_was_skipped:  # as float16's loss scaler does at an infinite gradient
                self.scheduler.step()
            self.optimizer.zero_grad()

    def on_loader_end(self, runner):
        total, count = self.engine.reduce(self.sums, reduction="sum").tolist()
        self.loader_metrics["loss"] = total / max(count, 1)
        super().on_loader_end(runner)


class DistilMLMRunner(dl.Runner):
    """Run teacher and student on a batch and leave what they give in ``self.batch``, for the callbacks.

    The model is a dict, ``{"teacher": MaskedPositionLM, "student": MaskedPositionLM}``: Catalyst prepares each for
    itself, so that the student, and it alone, gets its gradients synchronised when there are several processes. The
    teacher is frozen and in eval mode, without dropout, whatever Catalyst does to it.
    """

    def run(self):
        with fast_training(self._model["student"].model):
            return super().run()

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
