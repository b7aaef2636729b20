"""What looks like attention and is not measured is named, with the reason, once for each model."""

import warnings

import pytest
import torch
from torch import nn

import bertology as b
from bertology.anatomy.unmeasured import looks_like_attention
from bertology.errors import UnknownAnatomy, UnmeasuredAttention
from helpers.zoo import BY_NAME


def holding(*names):
    module = nn.Module()
    for name in names:
        module.add_module(name, nn.Linear(4, 4))
    return module


@pytest.mark.parametrize(
    "names",
    [
        ("q_proj", "k_proj", "v_proj"), ("to_q", "to_kv"), ("linear_q", "linear_k", "linear_v"), ("Wq", "Wk", "Wv"),
        ("my_query", "my_key", "my_value"), ("qkv",), ("Wqkv",), ("in_proj_qkv",), ("query_key_value",), ("q", "k", "v"),
        ("queries", "keys", "values"), ("queries", "keys_values"), ("query_proj", "key_proj", "value_proj"),
    ],
)  # fmt: skip
def test_attention_by_its_parts(names):
    assert looks_like_attention(holding(*names))


@pytest.mark.parametrize(
    "names", [("q_proj", "k_proj"), ("key", "value"), ("up", "down"), ("in_proj", "out_proj"), ("quick", "vast"), ()]
)
def test_other_parts(names):
    assert not looks_like_attention(holding(*names))


def test_attention_by_its_class():
    class NovelAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

    class AttentionOutput(NovelAttention):
        pass

    assert looks_like_attention(NovelAttention())
    assert looks_like_attention(nn.MultiheadAttention(4, 2))
    assert not looks_like_attention(AttentionOutput())
    assert not looks_like_attention(nn.Identity())


def with_strange_attention():
    model = BY_NAME["bert"].build()
    model.pools = nn.ModuleList(holding("a_query", "a_key", "a_value", "mix") for _ in range(3))
    return model


def test_it_is_named_and_said_once():
    model = with_strange_attention()
    with pytest.warns(UnmeasuredAttention) as said:
        anatomy = b.dissect(model)
    (one,) = said
    assert "pools.0 and 2 more like it (Module holds a_query, a_key, a_value, mix" in str(one.message)
    assert anatomy.labels == ("0", "1")
    assert list(anatomy.unmeasured) == ["pools.0", "pools.1", "pools.2"]
    assert "unmeasured={'pools.0'" in repr(anatomy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b.dissect(model)
        assert b.dissect(model).unmeasured == anatomy.unmeasured
    with pytest.warns(UnmeasuredAttention), b.gated(with_strange_attention(), torch.ones(2, 4)):
        pass


def test_it_can_be_silenced_and_made_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmeasuredAttention)
        b.dissect(with_strange_attention())
    model = with_strange_attention()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnmeasuredAttention)
            with pytest.raises(UnmeasuredAttention):
                b.dissect(model)


def test_a_tower_whose_widths_are_not_known_is_named_beside_one_that_is():
    both = nn.ModuleDict({"a": BY_NAME["bert"].build(), "b": BY_NAME["bert"].build()})
    for layer in both["b"].bert.encoder.layer:
        layer.attention.self.attention_head_size = 5
    with pytest.warns(UnmeasuredAttention, match="do not fit the heads of width 5"):
        anatomy = b.dissect(both)
    assert anatomy.labels == ("0", "1")
    assert list(anatomy.unmeasured) == [f"b.bert.encoder.layer.{i}.attention.self" for i in (0, 1)]
    with pytest.raises(UnknownAnatomy, match="do not fit the heads of width 5"):
        b.dissect(both["b"])
