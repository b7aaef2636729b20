"""`check_anatomy` proves right anatomies and refuses wrong ones."""

import dataclasses

import pytest
import torch
import transformers

import bertology
from bertology import Names, check_anatomy, dissect, register_names
from bertology.errors import UnknownAnatomy
from helpers.zoo import BY_NAME, batch

# oracle: anatomies that are wrong on purpose.


def with_sites(anatomy, **changes):
    return dataclasses.replace(anatomy, sites=tuple(dataclasses.replace(site, **changes) for site in anatomy.sites))


def test_right_anatomies(family):
    for attention in ("eager", "sdpa"):
        check_anatomy(family.build(attention=attention), batch())


def test_pruned_models():
    model = BY_NAME["bert"].build()
    bertology.prune_heads(model, {0: [1, 2], 1: [0, 1, 2, 3]})
    check_anatomy(model, batch())


def test_half_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_anatomy(BY_NAME["bert"].build().to(dtype), batch())


def test_heads_of_another_width():
    anatomy = dissect(BY_NAME["bert"].build())
    wrong = with_sites(anatomy, dim=2, width=8, kept=tuple(range(8)))
    with pytest.raises(UnknownAnatomy, match=r"cannot be proved|do not lie at .*attention.output.dense"):
        check_anatomy(wrong, batch())


def test_heads_in_another_order():
    model = BY_NAME["bert"].build()
    anatomy = dissect(model)
    mixed = torch.randperm(16)

    class Mixing(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x[..., mixed])

    mixing = Mixing(16, 16).double()
    dense = model.bert.encoder.layer[1].attention.output
    dense.dense = torch.nn.Sequential(torch.nn.Linear(16, 16).double(), mixing)
    wrong = dataclasses.replace(
        anatomy, sites=(anatomy.sites[0], dataclasses.replace(anatomy.sites[1], place=dense.dense[1]))
    )
    with pytest.raises(UnknownAnatomy, match=r"heads do not lie at .* Name the parts by hand"):
        check_anatomy(wrong, batch())


def test_a_norm_that_was_overlooked():
    if not hasattr(transformers, "BitNetConfig"):
        pytest.skip("no BitNet in this transformers")
    config = transformers.BitNetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    anatomy = dissect(transformers.BitNetModel(config))
    check_anatomy(anatomy, batch(labels=False))
    wrong = tuple(dataclasses.replace(site, place=site.projection) for site in anatomy.sites)
    with pytest.raises(UnknownAnatomy, match="Something stands between the heads and this place"):
        check_anatomy(dataclasses.replace(anatomy, sites=wrong), batch(labels=False))


def test_heads_of_nan_prove_nothing():
    """A norm of each head makes NaN of one that is silent; and weights of NaN make all heads alike."""

    class Unit(torch.nn.Module):
        def forward(self, x):
            heads = x.unflatten(-1, (4, -1))
            return (heads / heads.norm(dim=-1, keepdim=True)).flatten(2)

    model = BY_NAME["bert"].build()
    anatomy, output = dissect(model), model.bert.encoder.layer[1].attention.output
    output.dense = torch.nn.Sequential(Unit(), output.dense)
    with pytest.raises(UnknownAnatomy, match="Something stands between the heads and this place"):
        check_anatomy(anatomy, batch())
    broken = BY_NAME["gpt2"].build()
    with torch.no_grad():
        broken.transformer.h[0].attn.c_attn.weight[0] = torch.nan
    with pytest.raises(UnknownAnatomy, match=r"decoder.0 cannot be proved: it gets NaN .* at every token"):
        check_anatomy(broken, batch())


def test_sites_that_do_not_run():
    config = BY_NAME["bert"].config()
    config.is_decoder = config.add_cross_attention = True
    model = transformers.BertLMHeadModel(config)
    with pytest.raises(UnknownAnatomy, match=r"cross.0, cross.1 did not run on these inputs"):
        check_anatomy(model, batch(labels=False))
    check_anatomy(model, {**batch(labels=False), "encoder_hidden_states": torch.randn(3, 6, 16)})


class Attend(torch.nn.Module):
    """Attention with names of its own."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.to_q, self.to_k, self.to_v, self.to_out = (torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Home(torch.nn.Module):
    """A model that no library knows."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(40, 16)
        self.blocks = torch.nn.ModuleList(torch.nn.ModuleDict({"attention": Attend()}) for _ in range(2))

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block["attention"](x)
        return x


OWN = Names("to_q", "to_k", "to_v", "to_out")


@pytest.fixture
def unknown():
    """Names that no one registered, before and after."""
    names = bertology.anatomy.names.NAMES
    kept = [line for line in names if line != OWN]
    names[:] = kept
    yield
    names[:] = kept


@pytest.mark.usefixtures("unknown")
def test_a_model_of_ones_own():
    model = Home()
    with pytest.raises(UnknownAnatomy, match=r"look like attention hold to_q, to_k, to_v, to_out.*register_names"):
        dissect(model)
    register_names(OWN)
    anatomy = dissect(model)
    assert (anatomy.labels, anatomy.heads) == (("0", "1"), 4)
    inputs = {"input_ids": batch()["input_ids"]}
    check_anatomy(anatomy, inputs)
    maps = bertology.attention_maps(model, inputs).values
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 4, 7))
    importance = bertology.head_importance(model, inputs, loss=lambda out, _: out.square().sum((1, 2)))
    assert (importance.scores > 0).all()
    with bertology.ablated(model, {0: [1]}):
        silent = model(**inputs)
    weight = model.blocks[0]["attention"].to_out.weight
    with torch.no_grad():
        weight[:, 4:8] = 0
    torch.testing.assert_close(silent, model(**inputs))
