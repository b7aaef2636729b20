"""Models that attend by a function which the user registered with transformers."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from bertology import (
    attention_entropy,
    attention_gradients,
    attention_maps,
    dissect,
    gated,
    head_importance,
    prune_heads,
    tap,
)
from bertology.anatomy.forward_source import eager_function, is_transformers_4
from bertology.errors import UnknownAnatomy
from helpers.zoo import BY_NAME, batch
from oracles import heads as oracles

TOKENS = {"some": [3, 4, 5]}
ON_INTERFACE = [name for name in ("bert", "gpt2", "llama", "distilbert", "roberta", "albert") if name in BY_NAME]


def built(name: str, attention: str | None = None, kind: str = "classifier") -> Any:
    model = BY_NAME[name].build(kind)
    if eager_function(dissect(model).sites[0].attention) is None:
        pytest.skip(f"{name} is not on the attention interface in this release")
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The interface is afterwards what it was before, but for what a test registers itself."""
    functions = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    yield
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping, "a tap left its own function on the interface"
    for mapping, before in zip(
        (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping), functions, strict=True
    ):
        mapping.clear()
        mapping.update(before)


class Cubed:
    """Attention whose weights are cubed and made to sum to 1 again, and whose values are doubled."""

    def __init__(self, returns: bool = True) -> None:
        self.returns, self.seen = returns, []

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling=None, **more: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = (q.shape[-1] ** -0.5 if scaling is None else scaling) * q @ k.transpose(-1, -2)
        weights = (3 * (scores if mask is None else scores + mask)).softmax(-1)
        self.seen.append(weights.detach())
        return (weights @ (2 * v)).transpose(1, 2).contiguous(), weights if self.returns else None


def register(name: str, function: Any, mask: Any = eager_mask) -> Any:
    AttentionInterface.register(name, function)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    return function


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**{name: x for name, x in inputs.items() if name != "labels"}).logits


@pytest.mark.parametrize("name", ON_INTERFACE)
@pytest.mark.parametrize("called", ["cubed", "sdpa", "eager"])
def test_the_weights_that_the_function_returns_are_read(name, called):
    if called == "eager" and is_transformers_4():
        pytest.skip("transformers 4 does not look up 'eager'")
    cubed, inputs = register(called, Cubed()), batch()
    model = built(name, called)
    plain = logits(model, inputs)
    wanted = torch.stack(cubed.seen)
    maps = attention_maps(model, inputs)
    torch.testing.assert_close(maps.values, wanted, rtol=0, atol=0)
    entropy = attention_entropy(model, inputs, rows=2)
    torch.testing.assert_close(entropy.mean, oracles.entropy(wanted, inputs["attention_mask"]), check_dtype=False)
    with tap(model, "attention", read=lambda *_: None):
        torch.testing.assert_close(logits(model, inputs), plain, rtol=0, atol=0)
    model.set_attn_implementation("sdpa" if called != "sdpa" else "eager")
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attention_maps(model, inputs).values, wanted)


def test_gates_and_gradients_beside_maps_are_of_the_function():
    register("cubed", Cubed())
    model, inputs = built("gpt2", "cubed"), batch()
    alone = head_importance(model, inputs).scores
    with tap(model, "attention", read=lambda *_: None):
        torch.testing.assert_close(head_importance(model, inputs).scores, alone)
        gates = torch.ones(2, 4)
        gates[0, 1] = 0
        with gated(model, gates):
            beside = logits(model, inputs)
    with gated(model, gates):
        torch.testing.assert_close(beside, logits(model, inputs))
    model.requires_grad_()
    assert (attention_gradients(model, inputs, tokens=TOKENS).values[..., -1] > 0).all()
    register("copied", lambda *args, **kwargs: tuple(x.clone() for x in Cubed()(*args, **kwargs)))
    model.set_attn_implementation("copied")
    with pytest.raises(UnknownAnatomy, match="a copy of its weights"):
        attention_gradients(model, inputs, tokens=TOKENS)
    model.set_attn_implementation("cubed")
    prune_heads(model, {0: [1]})
    torch.testing.assert_close(logits(model, inputs), beside)
    assert attention_maps(model, inputs).values[0, :, 1].isnan().all()


def padded_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.flip(1) if name != "labels" else x for name, x in inputs.items()}


@pytest.mark.parametrize("name", ON_INTERFACE)
@pytest.mark.parametrize("called", ["quiet", "sdpa"])
@pytest.mark.parametrize("turn", [dict, padded_left])
def test_without_weights_the_eager_function_is_read_where_it_agrees(name, called, turn):
    def quiet(*args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, **kwargs)

    inputs = turn(batch())
    model = built(name, "sdpa")
    wanted, plain = attention_maps(model, inputs), logits(model, inputs)
    register(called, quiet, sdpa_mask)
    model.set_attn_implementation(called)
    # Llama takes its softmax in float32.
    torch.testing.assert_close(attention_maps(model, inputs).values, wanted.values, rtol=0, atol=2e-6)
    with tap(model, "attention", read=lambda *_: None, rows=3):
        torch.testing.assert_close(logits(model, inputs), plain)


def gradients(model: Any, inputs: dict[str, Tensor]) -> Any:
    return attention_gradients(model, inputs, tokens=TOKENS)


def twice_as_sharp(module: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, 2 * q, *args, **kwargs)


def with_more(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, q, k, v + 0.01, *args, **kwargs)


def scaled(factor: float, module: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, factor * q, *args, **kwargs)


@functools.wraps(sdpa_attention_forward)
def in_disguise(module: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, q.flip(-1), *args, **kwargs)


class OnlyLast:
    """Differs from the model's attention in its second layer alone."""

    def __call__(self, module: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, q * (1 + (getattr(module, "layer_idx", 1) or 0)), *args, **kwargs)


@pytest.mark.parametrize(
    "function",
    [twice_as_sharp, with_more, functools.partial(scaled, 0.5), in_disguise, OnlyLast()],
    ids=["sharp", "values", "partial", "disguise", "last"],
)
@pytest.mark.parametrize("called", ["mine", "sdpa"])
@pytest.mark.parametrize("call", [attention_maps, attention_entropy, gradients], ids=["maps", "entropy", "gradients"])
def test_without_weights_another_attention_is_refused(function, called, call):
    register(called, function, sdpa_mask)
    model, inputs = built("gpt2", called), batch()
    plain = logits(model, inputs)
    with pytest.raises(UnknownAnatomy, match=rf"'{called}', which returns no attention weights"):
        call(model, inputs)
    torch.testing.assert_close(logits(model, inputs), plain, rtol=0, atol=0)
    assert model.config._attn_implementation == called


def test_a_function_without_a_mask_function_gets_no_mask():
    # transformers then drops the padding mask: the model really looks at padding.
    cubed = register("bare", Cubed(), mask=None)
    model, inputs = built("llama", "bare"), batch()
    logits(model, inputs)
    wanted = torch.stack(cubed.seen)
    torch.testing.assert_close(attention_maps(model, inputs).values, wanted)
    assert (wanted.triu(1) > 0).any()


def test_a_mask_function_of_ones_own_counts():
    def all_see_the_first_three(*args: Any, **kwargs: Any) -> Any:
        # Without skipping, so that there is always a mask.
        mask = sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False})).clone()
        mask[..., :3] = True
        return mask

    inputs = {"input_ids": batch((7, 7), labels=False)["input_ids"]}
    model = built("gpt2", "sdpa")
    before = attention_maps(model, inputs).values
    with suppress(TypeError):
        AttentionMaskInterface.register("sdpa", all_see_the_first_three)
        found = attention_maps(model, inputs).values
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
        assert (found[0, ..., 0, 2] > 0).all()
        assert (before[0, ..., 0, 2] == 0).all()
        seen = found[0, 0, 0, 0, :3]
        site = dissect(model).sites[0]
        states: list[Tensor] = []
        with tap(model, "heads", read=lambda s, x: states.append(x)):
            logits(model, inputs)
        assert seen.sum() == pytest.approx(1)
        assert states[site.row].shape == (2, 7, 4, 4)


def test_scores_are_no_weights():
    def of_scores(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Any:
        return sdpa_attention_forward(module, q, k, v, mask, **more)[0], q @ k.transpose(-1, -2)

    register("scores", of_scores, sdpa_mask)
    with pytest.raises(UnknownAnatomy, match="returns for encoder.0 values that are not attention weights"):
        attention_maps(built("bert", "scores"), batch())


def test_an_eager_function_that_was_replaced_is_not_that_of_a_model_on_sdpa(monkeypatch):
    model, inputs, cubed = built("bert", "sdpa"), batch(), Cubed()
    file = sys.modules[eager_function(dissect(model).sites[0].attention).__module__]
    monkeypatch.setattr(file, "eager_attention_forward", cubed)
    with pytest.raises(UnknownAnatomy, match="its output is not that of the model's eager function"):
        attention_maps(model, inputs)
    model.set_attn_implementation("eager")
    cubed.seen.clear()
    logits(model, inputs)
    wanted = torch.stack(cubed.seen)
    torch.testing.assert_close(attention_maps(model, inputs).values, wanted)


def test_taps_on_one_function_end_in_any_order():
    cubed = register("cubed", Cubed())
    model, inputs, found = built("bert", "cubed"), batch(), ([], [])
    first, second = (tap(model, "attention", read=lambda s, x, r, to=some: to.append(x)) for some in found)
    first.__enter__()
    second.__enter__()
    logits(model, inputs)
    first.__exit__(None, None, None)
    logits(model, inputs)
    second.__exit__(None, None, None)
    logits(model, inputs)
    assert (len(found[0]), len(found[1]), len(cubed.seen)) == (2, 4, 6)
    assert ALL_ATTENTION_FUNCTIONS["cubed"] is cubed


def test_two_threads_read_models_of_one_function(monkeypatch):
    """One tap may be putting itself in the place of the function while the other one opens."""
    cubed, inputs, start = register("cubed", Cubed()), batch(), Barrier(2, timeout=30)
    models = [built("bert", "cubed"), built("bert", "cubed")]
    wanted = [attention_maps(model, inputs).values for model in models]
    module = sys.modules["bertology.tap.own_function"]
    replace = module.replace_entry

    def slowly(*given: Any) -> None:
        time.sleep(0.05)
        replace(*given)

    def read(model: Any) -> Tensor:
        found: list[Tensor] = []
        start.wait()
        with tap(model, "attention", read=lambda site, x, rows: found.append(x)):
            start.wait()
            logits(model, inputs)
            start.wait()
        return torch.stack(found)

    monkeypatch.setattr(module, "replace_entry", slowly)
    with ThreadPoolExecutor(2) as pool:
        torch.testing.assert_close(list(pool.map(read, models)), wanted)
    assert ALL_ATTENTION_FUNCTIONS["cubed"] is cubed


def test_a_function_on_the_instance_alone_is_put_back():
    cubed = Cubed()
    ALL_ATTENTION_FUNCTIONS["local"] = cubed
    ALL_MASK_ATTENTION_FUNCTIONS["local"] = eager_mask
    try:
        model, inputs = built("bert"), batch()
        model.config._attn_implementation = "local"
        logits(model, inputs)
        wanted = torch.stack(cubed.seen)
        torch.testing.assert_close(attention_maps(model, inputs).values, wanted)
        assert ALL_ATTENTION_FUNCTIONS["local"] is cubed
    finally:
        del ALL_ATTENTION_FUNCTIONS["local"], ALL_MASK_ATTENTION_FUNCTIONS["local"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_mask_of_true_and_false_is_what_the_model_takes_it_for(name):
    inputs = {"input_ids": batch((7, 7), labels=False)["input_ids"]}
    sees = torch.ones(7, 7, dtype=torch.bool).tril()
    sees[:, 1] = False
    sees[1, 1] = True
    sees = sees.expand(2, 1, 7, 7)
    model = built(name, "sdpa", "lm")
    with torch.no_grad():
        states: list[Tensor] = []
        with tap(model, "heads", read=lambda s, x: states.append(x)):
            model(**inputs, attention_mask=sees)
        maps: list[Tensor] = []
        with tap(model, "attention", read=lambda s, x, r: maps.append(x)):
            beside = model(**inputs, attention_mask=sees).logits
        torch.testing.assert_close(beside, model(**inputs, attention_mask=sees).logits, rtol=0, atol=1e-5)
    assert all((x[~sees.expand_as(x)] == 0).all() for x in maps)
