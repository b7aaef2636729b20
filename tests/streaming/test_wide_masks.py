"""Masks with a value for each pair of tokens: taken as they are meant, or refused."""

from __future__ import annotations

import pytest
import torch

import bertology as b
from bertology.errors import DataError
from bertology.streaming import wide_masks
from helpers.zoo import BY_NAME, V4, batch

TOKENS = 6
NEAR = torch.tril(torch.ones(TOKENS, TOKENS)).triu(-2).bool()  # each token and the two before it
CAUSAL = torch.tril(torch.ones(TOKENS, TOKENS)).bool()
# A text with padding, as each of its tokens sees it.
PADDED = torch.ones(2, TOKENS).bool()
PADDED[0, 4:] = False


def masked(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": batch((TOKENS, TOKENS), labels=False)["input_ids"], "attention_mask": mask}


def shapes(seen: torch.Tensor) -> dict[str, torch.Tensor]:
    """One mask in every form in which a model may take it."""
    wide = seen.expand(2, 1, TOKENS, TOKENS)
    return {
        "[batch, query, key] of 1 and 0": wide[:, 0].long(),
        "[batch, 1, query, key] of 1 and 0": wide.long(),
        "True and False": wide,
        "True and False for all examples": wide[:1] if torch.equal(wide[0], wide[1]) else wide,
        "added to the scores": torch.zeros(wide.shape, dtype=torch.float64).masked_fill(~wide, -1e9),
    }


@pytest.mark.parametrize("seen", [NEAR, CAUSAL, CAUSAL & PADDED[:, None, None]], ids=["near", "causal", "padded"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_mask_hides_what_it_says_or_is_refused(name, seen):
    model, taken = BY_NAME[name].build("lm"), 0
    for form, mask in shapes(seen).items():
        try:
            maps = b.attention_maps(model, masked(mask)).values
        except DataError:
            continue
        taken += 1
        hidden = ~seen.expand(2, 1, TOKENS, TOKENS) | ~CAUSAL if BY_NAME[name].causal else ~seen
        assert maps.masked_fill(~hidden, 0).max() < 1e-6, form
        assert maps.masked_fill(hidden, 1).min() > 0, form
    # GPT takes no wide masks, and before transformers 5 the encoders take few.
    assert taken >= (0 if name == "gpt" or V4 else 2)


def test_gpt2_flattens_a_mask_of_three_axes():
    """All queries would see what the first one sees: itself."""
    model, inputs = BY_NAME["gpt2"].build("lm"), masked(CAUSAL.long().expand(2, TOKENS, TOKENS).contiguous())
    for measure in (b.hidden_states, b.attention_maps, b.head_outputs):
        with pytest.raises(DataError, match="GPT2LMHeadModel does not take attention_mask"):
            measure(model, inputs)
    with pytest.raises(DataError, match="attention_mask"):
        b.head_importance(model, inputs | {"labels": inputs["input_ids"]})


def test_the_check_can_fail(monkeypatch):
    monkeypatch.setattr(wide_masks, "_refuse", lambda *_: None)
    model = BY_NAME["gpt2"].build("lm")
    maps = b.attention_maps(model, masked(NEAR.long().expand(2, TOKENS, TOKENS).contiguous())).values
    assert maps.masked_fill(NEAR, 0).max() > 0.5  # hidden
    assert maps[..., 1:].max() < 1e-6  # all see the first token alone
