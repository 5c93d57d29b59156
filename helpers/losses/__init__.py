"""Each distillation loss, and what is measured beside it, as a pure function of tensors. Knows nothing of Catalyst.

All sums are taken in float32 (or the wider type of the inputs), whatever autocast gives. A batch with nothing masked
gives a loss of zero that can be backpropagated, not NaN.

Each is a sum over tokens divided by `count`, by default the number of tokens given. A step that is made of several
micro-batches gives the number in all of them, so that the parts add up to the loss of the whole.
"""

from helpers.losses.layers import attention_loss, cosine_loss, hidden_loss, relation_loss, uniform_layers
from helpers.losses.outputs import (
    BYTES_AT_ONCE,
    accuracy_and_macro_f1,
    at_least_one,
    kl_div_loss,
    masked_lm_loss,
    mse_loss,
    perplexity,
)
