"""Caches in a batch: every pass starts from the same one, and the batch's own never changes."""

from itertools import pairwise

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from bertology import (
    attention_entropy,
    attention_maps,
    compare_efficiency,
    head_ablation,
    head_importance,
    head_outputs,
    hidden_states,
    pruning_curve,
    score,
)
from bertology.data.batches import model_arguments
from bertology.data.caches import own_caches
from bertology.errors import DataError
from helpers.zoo import BY_NAME, V4

NAME = "past_key_values" if V4 else "cache"
TEXT = torch.arange(5, 32).reshape(3, 9)


def tokens_of(cache):
    if isinstance(cache, (tuple, list)):
        return cache[0][0].shape[2]
    return int(cache.get_seq_length())


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.initializer_range = 0.3
    return transformers.LlamaForCausalLM(config).eval()


def with_cache(model, cache=None):
    with torch.no_grad():
        past = model(input_ids=TEXT[:, :5], use_cache=True, **{NAME: cache}).past_key_values
    return {"input_ids": TEXT[:, 5:], NAME: past, "labels": TEXT[:, 5:]}


def loss(outputs, batch):
    flat = torch.nn.functional.cross_entropy(outputs.logits.transpose(1, 2), batch["labels"], reduction="none")
    return flat.mean(1)


CALLS = {
    "score": lambda model, batch: score(model, batch, metric="inverse_loss", loss=loss).value,
    "importance": lambda model, batch: head_importance(model, batch, loss=loss).scores,
    "captured states": lambda model, batch: hidden_states(model, batch).values,
    "captured heads": lambda model, batch: head_outputs(model, batch, loss=loss).gradients,
    "curve": lambda model, batch: pruning_curve(model, batch, metric="inverse_loss", loss=loss).scores,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_second_call_gives_what_the_first_gave(call, kind):
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=20) if kind == "static" else DynamicCache()
    batch = with_cache(model, cache)
    first = torch.as_tensor(call(model, batch))
    assert tokens_of(batch[NAME]) == 5
    assert torch.equal(torch.as_tensor(call(model, batch)), first)


def test_the_whole_model_on_a_curve_is_scored_as_on_the_whole_text():
    model = llama()
    curve = pruning_curve(model, with_cache(model), metric="inverse_loss", loss=loss)
    with torch.no_grad():
        logits = model(input_ids=TEXT).logits[:, 5:]
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), TEXT[:, 5:])
    assert float(curve.scores[0]) == pytest.approx(1 / wanted.item(), rel=1e-5)


def test_the_test_sees_a_cache_that_is_not_copied(monkeypatch):
    monkeypatch.setattr("bertology.data.batches.own_caches", dict)
    model = llama()
    batch = with_cache(model)
    score(model, batch, metric="inverse_loss", loss=loss)
    assert tokens_of(batch[NAME]) == 9


def test_a_cache_whose_tensors_belong_to_a_graph_is_copied():
    model = llama()
    past = model(input_ids=TEXT[:, :5], use_cache=True).past_key_values
    batch = {"input_ids": TEXT[:, 5:], NAME: past, "labels": TEXT[:, 5:]}
    wanted = head_importance(model, with_cache(model), loss=loss).scores
    torch.testing.assert_close(head_importance(model, batch, loss=loss).scores, wanted)
    assert tokens_of(past) == 5


class Holder:
    """A cache of a custom model, with parts that refer to each other."""

    def __init__(self):
        self.layers = [{"keys": torch.ones(2, 3)}, (torch.zeros(2), None)]
        self.first = self.layers[0]["keys"]
        self.owner, self.config, self.kind = self, BY_NAME["bert"].build().config, torch.float32


class HolderCache(Holder):
    __slots__ = ()


def test_every_tensor_of_a_cache_is_a_copy_and_what_is_shared_stays_shared():
    cache = HolderCache()
    new = own_caches({"cache": cache, "past": 3})["cache"]
    assert type(new) is HolderCache
    assert new.owner is new
    assert new.first is new.layers[0]["keys"]
    assert new.first is not cache.first
    assert new.config is cache.config
    new.first.add_(1)
    new.layers[1][0].add_(1)
    assert float(cache.first.sum()) == 6
    assert float(cache.layers[1][0].sum()) == 0


def test_legacy_tuples_caches_of_encoder_decoders_and_states_are_copied():
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    both.self_attention_cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    legacy = tuple((torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4)) for _ in range(2))
    given = {"input_ids": TEXT, "past_key_values": legacy, "memory": both, "state": [torch.zeros(2)], "mems": None}
    new = model_arguments(given)
    new["memory"].self_attention_cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    new["state"][0].add_(1)
    new["past_key_values"][1][0].add_(1)
    assert both.get_seq_length() == 3
    assert float(given["state"][0].sum()) == 0
    assert float(legacy[1][0].sum()) == 24
    assert new["input_ids"] is TEXT


def test_what_takes_examples_out_of_a_batch_refuses_a_cache():
    model = llama()
    batch = with_cache(model)
    with pytest.raises(DataError, match=f"{NAME} .*pass whole texts"):
        head_ablation(model, batch, metric="inverse_loss", loss=loss)
    with pytest.raises(DataError, match=f"{NAME} .*pass whole texts"):
        compare_efficiency(model, llama(), batch, batch_sizes=(1,), rounds=1, seconds=0)
    assert tokens_of(batch[NAME]) == 5


def test_several_batches_with_caches_give_the_same_in_any_order():
    model = llama()
    one, other = with_cache(model), with_cache(model)
    sums = [attention_entropy(model, some).mean for some in ([one, other], [other, one], [one, other])]
    for first, second in pairwise(sums):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("padded", [0, 2])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_rest_of_a_text_gives_what_it_gives_in_the_whole_text(name, padded):
    """The mask is of all tokens; the queries are those after the cache, at the positions that the mask tells."""
    model, mask = BY_NAME[name].build("lm"), torch.ones_like(TEXT)
    mask[1, :padded] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = model(TEXT[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6], use_cache=True)[NAME]
    rest = {"input_ids": TEXT[:, 6:], "attention_mask": mask, NAME: cache}
    whole = {"input_ids": TEXT, "attention_mask": mask}
    expected = hidden_states(model, whole).values[:, :, 6:]
    torch.testing.assert_close(hidden_states(model, rest).values, expected)
    maps = attention_maps(model, whole).values[:, :, :, 6:]
    entropy = attention_entropy(model, rest)
    torch.testing.assert_close(
        entropy.mean, torch.special.entr(maps).sum(-1).mean((1, 3)).double(), rtol=1e-5, atol=1e-6
    )
    assert entropy.queries.tolist() == [9, 9]
    # The first of these tokens is predicted from a token in the cache, so it has no loss.
    labels = TEXT.clone()
    labels[:, :7] = -100
    found = head_importance(model, rest | {"labels": TEXT[:, 6:]}).scores
    assert found.isfinite().all()
    given = [
        score(model, one, metric="inverse_loss").value
        for one in (rest | {"labels": TEXT[:, 6:]}, whole | {"labels": labels})
    ]
    assert given[0] == pytest.approx(given[1])
    if padded:  # without positions from the mask, padding would be counted
        wrong = hidden_states(model, rest | {"position_ids": torch.arange(6, 9)[None].expand(3, 3)})
        assert (wrong.values - expected).abs().max() > (1e-3 if name == "gpt2" else -1)


@pytest.mark.parametrize("width", [3, 6, 8, 10])
def test_a_mask_beside_a_cache_is_of_all_tokens(width):
    model = llama()
    cache = model(TEXT[:, :6], use_cache=True)[NAME]
    batch = {"input_ids": TEXT[:, 6:], "attention_mask": torch.ones(3, width).long(), NAME: cache}
    with pytest.raises(DataError, match=r"attention_mask must be \[3, 9\], .* 6 earlier tokens .* 3 tokens"):
        hidden_states(model, batch)
