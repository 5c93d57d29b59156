"""The losses and the metrics as Catalyst callbacks. Knows nothing of how logits were made.

The keys read from the runner's batch: ``s_logits`` and ``t_logits`` (masked, vocabulary), ``s_hidden_states`` and
``t_hidden_states`` (tuples of (batch, length, hidden)), ``attention_mask`` and ``labels`` (batch, length). Of a
classifier, logits are (batch, classes) and ``labels`` (batch,). A micro-batch also tells the counts of its whole step,
as ``step_logits``, ``step_labels`` and ``step_attended``. The losses that ask for queries, keys and values put them
there, as ``s_qkv`` and ``t_qkv`` (from a layer to the three, each (batch, heads, length, width)).
"""

from helpers.callbacks.layers import (
    AttentionLossCallback,
    CosineLossCallback,
    HiddenLossCallback,
    RelationLossCallback,
)
from helpers.callbacks.measures import (
    ConfusionCallback,
    KLDivLossCallback,
    LabelLossCallback,
    LoaderMeanCallback,
    MaskedLanguageModelCallback,
    MSELossCallback,
    PerplexityCallback,
)
from helpers.callbacks.weights import (
    LOSSES,
    TASK_LOSSES,
    are_loss_weights,
    loss_weights_form,
    weighted_sum,
)
