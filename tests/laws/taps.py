"""Every kind of tap and every measure, on every family, and what must be as it was after them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

import bertology as b
from bertology import dissect, tap
from bertology.tap import interface_route as interface
from helpers.zoo import BY_NAME, FAMILIES, PAD, VOCAB, Family, batch
from laws.laws import same, snapshot

SPECIAL = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
TWO_STACKS = [
    Family("t5", lambda: t.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
                                    **SPECIAL),
           t.T5ForConditionalGeneration, t.T5ForConditionalGeneration),
    Family("bart", lambda: t.BartConfig(vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=1,
                                        encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=24,
                                        decoder_ffn_dim=24, max_position_embeddings=32, **SPECIAL),
           t.BartForConditionalGeneration, t.BartForConditionalGeneration),
]  # fmt: skip
EVERY = {family.name: family for family in [*FAMILIES, *TWO_STACKS]}
PLACES = ("inputs", "block", "last", "heads", "attention", "entropy")
MAPS = ("attention", "entropy")

Measure = Callable[[Any, dict[str, Any]], Any]
each_family = pytest.mark.parametrize("name", EVERY)


def texts(name: str) -> dict[str, Any]:
    """A padded batch with labels, and for a model of two stacks with a padded target."""
    given = batch()
    if name in BY_NAME:
        return given
    target = batch((3, 5, 2), labels=False, seed=2)
    given["decoder_input_ids"], given["decoder_attention_mask"] = target["input_ids"], target["attention_mask"]
    given["labels"] = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    return given


def logits(model: Any, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**{key: x for key, x in given.items() if key != "labels"}).logits


# What may go wrong: every kind of tap, and whole measures. Each gives numbers, to be compared with those of a model
# that nothing ever happened to.


def note(seen: dict[str, list[Tensor]], *what: Any) -> None:
    """A reader that writes down what it is given, under the names of the place."""
    arguments = what[0] if isinstance(what[0], dict) else {}
    place = " ".join(str(x) for x in what if not isinstance(x, Tensor | slice | dict))
    for name, x in [*arguments.items(), *((place, x) for x in what if isinstance(x, Tensor))]:
        seen.setdefault(name, []).append(x.detach().clone())


def whole(seen: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """What was seen, blocks of query rows put together."""
    return {key: torch.cat(some, dim=2) if len(some) > 1 else some[0] for key, some in seen.items()}


def reading(place: str, **options: Any) -> Measure:
    def measure(model: Any, given: dict[str, Any]) -> Any:
        seen: dict[str, list[Tensor]] = {}
        with tap(dissect(model), place, read=partial(note, seen), **options):
            return {"logits": logits(model, given)} | whole(seen)

    return measure


def inside(manager: Callable[[Any], Any]) -> Measure:
    def measure(model: Any, given: dict[str, Any]) -> Tensor:
        with manager(model):
            return logits(model, given)

    return measure


def gates(model: Any, seed: int = 0) -> Tensor:
    anatomy = dissect(model)
    return torch.rand(anatomy.layers, anatomy.heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ignoring(place: str) -> Callable[[Any], Any]:
    return lambda model: tap(dissect(model), place, read=lambda *_: None)


CONTEXTS: dict[str, Callable[[Any], Any]] = {
    **{f"{place} read": ignoring(place) for place in PLACES},
    "block edited": lambda m: tap(dissect(m), "block", edit=lambda stack, layer, x: x * 2),
    "heads edited": lambda m: tap(dissect(m), "heads", edit=lambda site, x: x * 2),
    "gated": lambda m: b.gated(m, gates(m)),
    "ablated mean": lambda m: b.ablated(m, {0: [1]}, replace="mean"),
}
TAPS: dict[str, Measure] = {
    **{place: reading(place) for place in PLACES},
    **{name: inside(CONTEXTS[name]) for name in ("block edited", "heads edited", "gated", "ablated mean")},
}
MEASURES: dict[str, Measure] = {
    "hidden_states": lambda m, x: b.hidden_states(m, x).stacks,
    "attention_maps": lambda m, x: b.attention_maps(m, x).stacks,
    "head_outputs": lambda m, x: [(h := b.head_outputs(m, x, loss="auto")).stacks, h.gradient_stacks],
    "attention_entropy": lambda m, x: b.attention_entropy(m, x).mean,
    "head_importance": lambda m, x: b.head_importance(m, x).scores,
}


def all_at_once(model: Any, given: dict[str, Any]) -> list[Tensor]:
    """Every kind of hook in one pass: importance and entropy while blocks, last states, maps and inputs are read."""
    with ExitStack() as taps:
        for place in ("inputs", "block", "last", "attention"):
            taps.enter_context(CONTEXTS[f"{place} read"](model))
        taps.enter_context(CONTEXTS["ablated mean"](model))
        importance, entropy = b.accumulate(model, given, b.ImportanceAccumulator(), b.EntropyAccumulator())
    return [importance.scores, entropy.mean]


KINDS = TAPS | MEASURES | {"all at once": all_at_once}


def everything(model: Any) -> dict[str, Any]:
    """What must not change: `laws.snapshot`, and whatever else a tap could leave behind."""
    modules = list(model.modules())
    flags = [[len(x) for name, x in vars(m).items() if "_hooks_" in name] for m in modules]
    return snapshot(model) | {
        "attributes": [sorted(vars(m)) for m in modules],
        "hook flags": flags,
        "function modes": torch._C._len_torch_function_stack(),
        "readings": len(interface._readings),
    }


def check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        equal = same(before[key], after[key]) if key in ("weights", "rng") else before[key] == after[key]
        assert equal, f"{key} is not as it was"


def check_close(found: Any, expected: Any) -> None:
    """Llama and T5 compute softmax and norms in float32 even in float64 models, and sdpa is not bit for bit eager."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def half_training(model: Any) -> None:
    model.train()
    next(iter(model.children())).eval()
    next(model.parameters()).requires_grad_(False)
