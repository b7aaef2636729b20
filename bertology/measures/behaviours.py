"""Which heads behave in a way that has a name?"""

from __future__ import annotations

from torch import Tensor

from ..anatomy.sites import Head, heads_where
from ..errors import DataError, checked
from .entropy import AttentionEntropy
from .patterns import AttentionPatterns


@checked
def head_behaviours(
    patterns: AttentionPatterns,
    entropy: AttentionEntropy | None = None,
    *,
    threshold: float = 0.5,
    to_class: float = 0.6,
    broad: float = 3.8,
) -> dict[str, list[Head]]:
    """List the heads that attend mostly to one place, under the name of that behaviour (Clark et al. 2019, figure 6).

    `next` and `previous` are the heads whose attention to these tokens is above `threshold`, `to separator` those above
    `to_class` to the token class `separator`, and so for each class but `other`, `to first` those above it to the
    text's first token, and `broad` those whose entropy is above `broad`.

    The paper gives each head one name. Here a head is listed under every name that applies, and most heads are listed
    under none. The most specific names come first; `head_map` uses the first.

    Args:
        patterns: what `attention_patterns` returns, with `tokens` for the classes.
        entropy: what `attention_entropy` returns for the same model; without it no head is `broad`.
        threshold: the least share of the attention to the next or the previous token.
        to_class: the least share of the attention to a class, or to the first token.
        broad: the least entropy, in nats. The paper's 3.8 is for texts of up to 128 tokens, where uniform attention has
            ln 128 = 4.85: on shorter texts (ln 45 = 3.8) no head can have it.

    Raises `DataError` for an entropy of other layers or heads.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from bertology import attention_patterns
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> patterns = attention_patterns(model, {"input_ids": torch.tensor([[5, 6, 7]])}, tokens={"separator": [7]})
        >>> list(head_behaviours(patterns))
        ['next', 'previous', 'to separator', 'to first']
    """

    def above(values: Tensor, least: float) -> list[Head]:
        return heads_where(patterns.labels, values > least)

    found = {name: above(getattr(patterns, name), threshold) for name in ("next", "previous")}
    found |= {f"to {name}": above(patterns.attention_to(name), to_class) for name in patterns.classes[:-1]}
    found.setdefault("to first", above(patterns.first, to_class))
    if entropy is not None:
        if entropy.labels != patterns.labels or entropy.mean.shape != patterns.first.shape:
            raise DataError(
                f"patterns of {list(patterns.first.shape)} layers and heads, entropy of {list(entropy.mean.shape)}: "
                "wanted both of the same model"
            )
        found["broad"] = above(entropy.mean, broad)
    return found
