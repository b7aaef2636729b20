"""Texts of any shape, padded in any way, and models with any number of heads, in any precision."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.zoo import BY_NAME, PAD, V4, VOCAB

WHOLE = set(BY_NAME) - {"llama"} if V4 else {"gpt"}
"""Families whose maps come in one piece: not on the attention interface, or with an own mask (GPT-2 of 4.57)."""
PRECISE = (torch.float64, torch.float32)
HALF = (torch.bfloat16, torch.float16)

# How far a model may be from the same weights in float64. Every operation of these families runs on the CPU in all of
# these types. Over 1,700 random texts, families and numbers of heads the worst were, in the order of the table, for
# float32 8e-7, 2.4e-6, 1.7e-6, 2.5e-7, for bfloat16 0.021, 0.057, 0.06, 3e-3, for float16 2.9e-3, 7.6e-3, 4.7e-3,
# 4.1e-4: at least 3 times that is allowed.
TOLERANCES = {
    torch.float32: {"entropy": 3e-6, "maps": 8e-6, "states": 6e-6, "sums": 1e-6},
    torch.bfloat16: {"entropy": 0.07, "maps": 0.2, "states": 0.2, "sums": 1e-2},
    torch.float16: {"entropy": 1e-2, "maps": 2.5e-2, "states": 2e-2, "sums": 1.5e-3},
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
IN_FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}


def exactness(name: str) -> dict[str, float]:
    """Llama takes its softmax in float32 even in a float64 model."""
    return IN_FLOAT32 if name == "llama" else EXACT


@cache
def model_of(name: str, heads: int = 4, dtype: torch.dtype = torch.float64, kind: str = "lm") -> Any:
    """A model with so many heads, of which Llama's share keys by two; built once, for measures leave it alone."""
    grouped = {"num_key_value_heads": max(1, heads // 2)} if name == "llama" else {}
    return BY_NAME[name].build(kind, num_attention_heads=heads, **grouped).to(dtype)


@cache
def wide_twin(name: str, heads: int, dtype: torch.dtype, kind: str = "lm") -> Any:
    """The same model in float64, with the weights that `dtype` could hold: only the computation differs."""
    return copy.deepcopy(model_of(name, heads, dtype, kind)).double()


def text_of(mask: Tensor, seed: int) -> dict[str, Tensor]:
    """Random tokens where the mask is True, padding elsewhere."""
    ids = torch.randint(3, VOCAB, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


@st.composite
def texts(draw: Any) -> dict[str, Tensor]:
    """1 to 3 texts in 1 to 9 places, padded right, left or in between, each with a real token at least."""
    tokens = draw(st.integers(1, 9))
    row = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    mask = torch.tensor(draw(st.lists(row, min_size=1, max_size=3)))
    side = draw(st.sampled_from(["right", "left", "holes"]))
    if side != "holes":
        mask = mask.sort(dim=1, descending=side == "right")[0]
    return text_of(mask, draw(st.integers(0, 99)))


HOLES = text_of(torch.tensor([[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0, 0]]).bool(), 0)
"""Two texts, one with holes and one padded at its end, for what must be seen to fail."""

names, heads_of = st.sampled_from(sorted(BY_NAME)), st.sampled_from([1, 2, 4, 8])
any_rows = st.none() | st.integers(1, 10)
few = settings(max_examples=60)
dtypes = st.sampled_from([*PRECISE, *HALF])


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits
