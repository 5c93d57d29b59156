"""Narrower feed-forward layers: the neurons that matter on a corpus stay, the others are cut out."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from helpers.data import masked_targets
from helpers.models.families import family_of
from helpers.models.masked import MaskedPositionLM


def check_width(model: PreTrainedModel, width: int) -> None:
    """Raise a ValueError unless a model's feed-forward can be narrowed to `width`."""
    most = getattr(model.config, family_of(model).width)
    if not 1 <= width <= most:
        raise ValueError(
            f"FEED_FORWARD is {width:,}, but the model's feed-forward layers are {most:,} wide: set it to less, or to "
            "None."
        )


def neuron_importance(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    r"""How much each neuron of the feed-forward layers matters to the masked-LM loss.

    To first order, the loss changes by :math:`-a \, \partial L / \partial a` when a neuron's output :math:`a` is set to
    zero (Molchanov et al. 2017, section 2.2). The absolute values are added up over all tokens.

    Args:
        model: a masked-LM model, in eval mode.
        batches: dict batches with ``input_ids``, ``attention_mask`` and ``labels``, as `data.masked_lm_loaders` gives.

    Returns:
        (layers, width) float32, each at least 0.
    """
    family, outputs = family_of(model), []
    layers = model.get_submodule(family.layers)
    importance = torch.zeros(len(layers), getattr(model.config, family.width))

    def keep(module, given):
        outputs.append(given[0].requires_grad_())
        return (outputs[-1],)

    hooks = [layer.get_submodule(family.outward).register_forward_pre_hook(keep) for layer in layers]
    wrapped = MaskedPositionLM(model)
    try:
        for batch in batches:
            outputs.clear()
            with torch.enable_grad():
                logits, _ = wrapped(*(batch[key] for key in ("input_ids", "attention_mask", "labels")))
                gradients = torch.autograd.grad(
                    F.cross_entropy(logits, masked_targets(batch), reduction="sum"), outputs
                )
            for layer, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
                importance[layer] += (output.detach() * gradient).abs().flatten(0, 1).sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return importance


def narrow_feed_forward(model: PreTrainedModel, width: int, batches: Iterable[dict[str, Tensor]]) -> PreTrainedModel:
    """Make a model whose feed-forward layers keep the `width` neurons of each layer that matter most.

    Args:
        model: a masked-LM model of `families.FAMILIES`; it is left as it is.
        width: neurons that stay in each layer. All of them give the same logits.
        batches: those of a corpus that the neurons are chosen on; see `neuron_importance`.

    Returns:
        A new model of the same class in eval mode, sharing no memory; its configuration says its width, so that
        ``from_pretrained`` loads it as it is.

    Raises:
        ValueError: `width` is above the model's own, or below 1.
    """
    check_width(model, width)
    family, state, config = family_of(model), model.state_dict(), copy.deepcopy(model.config)
    wide = getattr(config, family.width)
    for layer, importance in enumerate(neuron_importance(model, batches)):
        kept = importance.topk(width).indices.sort().values
        first, last = (f"{family.layers}.{layer}.{name}" for name in (family.inward, family.outward))
        rows = torch.cat([kept, kept + wide]) if family.gated else kept
        for name in (f"{first}.weight", f"{first}.bias"):
            if name in state:  # ModernBERT's have no bias
                state[name] = state[name][rows]
        state[f"{last}.weight"] = state[f"{last}.weight"][:, kept]
    setattr(config, family.width, width)
    narrow = type(model)(config)
    narrow.load_state_dict(state)
    return narrow.eval()
