"""Attention that is built unlike all others: heads that are cut out, gated or read all the same, or refused clearly."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import bertology as b
from bertology.errors import DataError, HeadError, PruningError, UnknownAnatomy
from helpers.zoo import V4
from sweep import shrink
from sweep.checks import close, logits, run
from sweep.shrink import Tiny, class_of

pytestmark = pytest.mark.skipif(V4, reason="these are the architectures of transformers 5")

# Pruned by the table of parts, or by a layout of their own.
ODD = [
    "codegen", "cpmant", "deepseek_v4", "diffllama", "doge", "funnel", "ibert", "inkling2_text", "inkling_text", "longt5", "neomme",
    "nystromformer", "squeezebert", "xlnet",
]  # fmt: skip


def gated_logits(tiny, heads):
    anatomy = b.dissect(tiny.model)
    gates = torch.ones(anatomy.layers, anatomy.heads)
    for row, head in heads:
        gates[row, head] = 0
    with b.gated(tiny.model, gates):
        return logits(run(tiny.model, tiny.batch))


def steps(tiny):
    """What to prune first, and what after it: heads of the first layer, then the like of the others."""
    sites = b.dissect(tiny.model).sites
    heads = [(site.row, head) for site in sites for head in range(1, site.width, 2)]
    return [place for place in heads if place[0] == 0], [place for place in heads if place[0] > 0]


@pytest.mark.parametrize("model_type", ODD)
def test_pruned_in_steps_saved_and_loaded(model_type, tmp_path):
    tiny = Tiny(model_type)
    first, second = steps(tiny)
    expected = gated_logits(tiny, first + second)
    whole = sum(p.numel() for p in tiny.model.parameters())
    b.prune_heads(tiny.model, first)
    b.prune_heads(tiny.model, second)
    close(logits(run(tiny.model, tiny.batch)), expected, tiny.tolerance, "logits")
    assert sum(p.numel() for p in tiny.model.parameters()) < whole
    b.save_pruned(tiny.model, tmp_path)
    again = b.load_pruned(tmp_path, dtype=torch.float64 if tiny.double else None).eval()
    if tiny.double:  # XLNet makes its parameters in float32 whatever was asked for
        again.double()
    again.config._experts_implementation = "eager"  # grouped matrix products know no float64
    close(logits(run(again, tiny.batch)), expected, tiny.tolerance, "logits of the loaded model")
    assert torch.equal(b.dissect(again).present, b.dissect(tiny.model).present)


# Sizes with 8 heads, and what goes first and second of them.
SWA = {"swa_num_attention_heads": 8, "swa_num_key_value_heads": 2}
EIGHT = {
    "codegen": ({}, [0, 3, 5, 6], []),
    "cpmant": ({"num_attention_heads": 8}, [1, 6], [2, 7]),
    "deepseek_v4": ({"num_attention_heads": 8}, [0, 6], [2, 5]),
    "diffllama": ({"num_attention_heads": 16, "num_key_value_heads": 4}, [0, 7], [2, 5]),
    "doge": ({"num_attention_heads": 8}, [0, 6], [2, 5]),
    "funnel": ({"n_head": 8}, [1, 6], [2, 7]),
    "ibert": ({"num_attention_heads": 8}, [1, 6], [2, 7]),
    "longt5": ({"num_heads": 8}, [1, 6], [2, 7]),
    "inkling2_text": ({"num_attention_heads": 8, **SWA, "layer_types": ["hybrid", "hybrid_sliding"]}, [0, 6], [2, 5]),
    "inkling_text": ({"num_attention_heads": 8, **SWA, "layer_types": ["hybrid", "hybrid_sliding"]}, [0, 6], [2, 5]),
    "neomme": ({"num_attention_heads": 8}, [0, 6], [2, 5]),
    "nystromformer": ({"num_attention_heads": 8}, [1, 6], [2, 7]),
    "squeezebert": ({"num_attention_heads": 8, "q_groups": 2, "k_groups": 4, "v_groups": 1}, [0, 3, 5, 6], []),
    "xlnet": ({"n_head": 8, "d_head": 4}, [1, 6], [2, 7]),
}


def sized(monkeypatch, model_type, **settings):
    kind = class_of(model_type).config_class.model_type
    monkeypatch.setitem(shrink.SPECIAL, kind, {**shrink.SPECIAL.get(kind, {}), **settings})
    return Tiny(model_type)


def test_weights_that_have_other_names_in_files_are_loaded(tmp_path):
    tiny = Tiny("gpt_neox")
    b.prune_heads(tiny.model, {0: [1]})
    expected = logits(run(tiny.model, tiny.batch))
    b.save_pruned(tiny.model, tmp_path)
    close(logits(run(b.load_pruned(tmp_path, dtype=torch.float64), tiny.batch)), expected, 1e-6, "logits")


def test_weights_that_are_not_there_are_told(tmp_path):
    tiny = Tiny("bert")
    b.prune_heads(tiny.model, {0: [1]})
    b.save_pruned(tiny.model, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match="lack weights of BertLMHeadModel: .*1.attention.self.query.weight"):
        b.load_pruned(tmp_path)


@pytest.mark.parametrize("model_type", ODD)
def test_a_layer_pruned_twice_keeps_its_numbers(model_type, monkeypatch):
    settings, first, second = EIGHT[model_type]
    tiny = sized(monkeypatch, model_type, **settings)
    assert b.dissect(tiny.model).sites[0].width == 8
    for gone, heads in ((first, first), (first + second, second)):
        expected = gated_logits(tiny, [(0, head) for head in heads])
        if heads:
            b.prune_heads(tiny.model, {0: heads})
        close(logits(run(tiny.model, tiny.batch)), expected, tiny.tolerance, "logits")
        assert b.dissect(tiny.model).sites[0].kept == tuple(head for head in range(8) if head not in gone)


ALL = "all"
REFUSED = [
    ("codegen", {}, [0, 1], "the 8 heads of decoder.0 are shared out evenly among 4 groups"),
    ("codegen", {}, ALL, "the 8 heads of decoder.0 are shared out evenly among 4 groups"),
    ("squeezebert", {}, [0, 1], "the 8 heads of encoder.0 are shared out evenly among 4 groups"),
    ("squeezebert", {"post_attention_groups": 2}, [0], "only Linear and Conv1D layers with plain weights"),
    ("deepseek_v4", {}, [0], "the 4 heads of decoder.0 are shared out evenly among 2 groups"),
    ("doge", {}, [0, 1], "heads of encoder.0 share keys that must all stay in DogeAttention"),
    ("neomme", {}, [2, 3], "heads of encoder.0 share keys that must all stay in NeoMMEAttention"),
    ("inkling_text", {}, ALL, "heads of decoder.0 share keys that must all stay in InklingAttention"),
    ("inkling2_text", {}, [0, 1], "heads of decoder.0 share keys that must all stay in Inkling2SlidingAttention"),
    ("diffllama", {"num_attention_heads": 8, "num_key_value_heads": 4}, [0], "share keys in groups"),
    ("nystromformer", {"num_landmarks": 4, "segment_means_seq_len": 8}, [0], "its num_landmarks and seq_len differ"),
    ("ibert", {"quant_mode": True}, [0], "only Linear and Conv1D layers with plain weights can be cut"),
    ("pegasus_x", {}, [0], "it takes their width together from the hidden states"),
]


@pytest.mark.parametrize(("model_type", "settings", "heads", "message"), REFUSED)
def test_what_cannot_be_cut_is_refused_before_anything_changes(monkeypatch, model_type, settings, heads, message):
    kind = class_of(model_type).config_class.model_type
    monkeypatch.setitem(shrink.SPECIAL, kind, {**shrink.SPECIAL.get(kind, {}), **settings})
    model = shrink.build(class_of(model_type), shrink.tiny_config(model_type), None)
    heads = list(range(b.dissect(model).sites[0].width)) if heads == ALL else heads
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PruningError, match=message):
        b.prune_heads(model, {0: heads})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not getattr(model.config, "pruned_heads", None)


@pytest.mark.parametrize("model_type", ["cpmant", "diffllama", "funnel", "ibert", "longt5", "nystromformer", "xlnet"])
def test_a_layer_without_any_head(model_type):
    tiny = Tiny(model_type)
    heads = [(0, head) for head in b.dissect(tiny.model).sites[0].kept]
    expected = gated_logits(tiny, heads)
    b.prune_heads(tiny.model, heads)
    close(logits(run(tiny.model, tiny.batch)), expected, tiny.tolerance, "logits")
    assert b.dissect(tiny.model).sites[0].kept == ()


@pytest.mark.parametrize("model_type", ["codegen", "diffllama", "doge", "xlnet"])
def test_generation_with_a_cache(model_type):
    tiny = Tiny(model_type)
    ids = tiny.batch["input_ids"][:2]
    tiny.model.float()  # as XLNet's own generation wants it
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    first, second = steps(tiny)
    heads = first + second
    gates = torch.ones(b.dissect(tiny.model).layers, b.dissect(tiny.model).heads)
    for row, head in heads:
        gates[row, head] = 0
    if model_type == "xlnet":  # it generates with two streams
        with b.gated(tiny.model, gates), pytest.raises(UnknownAnatomy, match="attention with two streams"):
            tiny.model.generate(ids, **options)
        return
    with b.gated(tiny.model, gates):
        expected = tiny.model.generate(ids, **options)
    b.prune_heads(tiny.model, heads)
    assert torch.equal(tiny.model.generate(ids, **options), expected)


def test_the_heads_of_xlnet_are_what_its_parameter_is_multiplied_with():
    tiny = Tiny("xlnet")
    found = b.head_outputs(tiny.model, tiny.batch).values
    seen = []
    for layer in tiny.model.transformer.layer:
        layer.rel_attn.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    run(tiny.model, tiny.batch)
    for layer, (before, after) in enumerate(seen):
        attention = tiny.model.transformer.layer[layer].rel_attn
        projected = torch.einsum("bind,hnd->ibh", found[layer], attention.o)
        torch.testing.assert_close(attention.layer_norm(projected + before), after)


def test_two_streams_are_refused():
    tiny = Tiny("xlnet")
    tiny.model.float()
    mapping = torch.zeros(3, 1, tiny.batch["input_ids"].shape[1])
    mapping[:, :, 2] = 1
    batch = {**tiny.batch, "target_mapping": mapping}
    with pytest.raises(UnknownAnatomy, match="attention with two streams"):
        b.head_outputs(tiny.model, batch)
    with pytest.raises(UnknownAnatomy, match="took 2 softmaxes"):
        b.attention_maps(tiny.model, batch)
    b.head_outputs(tiny.model, tiny.batch)  # and nothing is left behind


@pytest.mark.parametrize("model_type", ["pegasus_x", "prophetnet"])
def test_heads_of_several_kinds_of_tokens_are_edited_but_not_read(model_type):
    tiny = Tiny(model_type)
    with pytest.raises(UnknownAnatomy, match="runs on 2 kinds of tokens in turn"):
        b.head_outputs(tiny.model, tiny.batch)
    with pytest.raises(UnknownAnatomy, match="runs on 2 kinds of tokens in turn"):
        b.head_outputs(tiny.model, tiny.batch, loss=lambda outputs, batch: logits(outputs).flatten(1).sum(1))
    row = next(site.row for site in b.dissect(tiny.model).sites if site.runs > 1)
    with pytest.raises(HeadError, match="they have no one mean"), b.ablated(tiny.model, [(row, 0)], replace="mean"):
        pass


def with_global_tokens(model_type):
    """A model of attention over windows on a text that is longer than them, some of its tokens global."""
    tiny = Tiny(model_type)
    tiny.model.double()
    ids = torch.randint(3, 40, (2, 22), generator=torch.Generator().manual_seed(0))
    mask, every = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 19:] = 0
    every[0, [0, 3, 20]], every[1, 7] = 1, 1
    batch = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": every}
    if model_type == "led":
        batch["decoder_input_ids"] = ids[:, :4]
    return tiny.model, batch


@pytest.mark.parametrize("model_type", ["led", "longformer"])
@pytest.mark.parametrize("some_global", [True, False])
def test_maps_over_windows_times_values_are_the_heads(model_type, some_global):
    model, batch = with_global_tokens(model_type)
    if not some_global:
        del batch["global_attention_mask"]
    sites = [site for site in b.dissect(model).sites if hasattr(site.attention, "value_global")]
    hidden = {}
    for site in sites:
        site.attention.register_forward_pre_hook(
            lambda module, args, kwargs, site=site: hidden.update({site: (args or (kwargs["hidden_states"],))[0]}),
            with_kwargs=True,
        )
    heads = b.head_outputs(model, batch).stacks["encoder"]
    maps = b.attention_maps(model, batch).stacks["encoder"]
    real = batch["attention_mask"].bool()
    for layer, site in enumerate(sites):
        values = [f(hidden[site]).unflatten(-1, (4, -1)) for f in (site.value, site.attention.value_global)]
        of_local, of_global = (torch.einsum("bhqk,bkhd->bqhd", maps[layer].double(), v)[:, :22] for v in values)
        is_global = batch.get("global_attention_mask", torch.zeros_like(real)).bool()
        expected = torch.where(is_global[:, :, None, None], of_global, of_local)
        torch.testing.assert_close(heads[layer][:, :22][real], expected[real], atol=1e-6, rtol=0)
        rows = maps[layer][:, :, :22].transpose(1, 2)[real].sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


def test_maps_over_blocks_times_values_are_the_heads():
    tiny = Tiny("longt5")
    model, ids = tiny.model, torch.randint(3, 40, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 33:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    site = b.dissect(model).sites[0]
    hidden = []
    site.attention.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    heads = b.head_outputs(model, batch).stacks["encoder"][0]
    weights = b.attention_maps(model, batch).stacks["encoder"][0]
    values = site.value(hidden[0]).unflatten(-1, (4, -1))
    expected = torch.einsum("bhqk,bkhd->bqhd", weights.to(values.dtype), values)
    torch.testing.assert_close(heads[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=0)


def test_a_bias_that_holds_the_mask_is_handed_on_whole():
    tiny = Tiny("longt5")
    ids = torch.randint(3, 40, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 31:] = 0
    tiny.batch = {"input_ids": ids * mask, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    for heads in ([(0, 1), (0, 2)], [(0, 3), (1, 0)]):
        expected = gated_logits(tiny, heads)
        b.prune_heads(tiny.model, heads)
        close(logits(run(tiny.model, tiny.batch)), expected, tiny.tolerance, "logits")


@pytest.mark.parametrize("model_type", ODD)
def test_what_is_left_still_learns(model_type):
    tiny = Tiny(model_type)
    first, second = steps(tiny)
    b.prune_heads(tiny.model, first + second)
    logits(tiny.model.train()(**tiny.batch)).sum().backward()
    for site in b.dissect(tiny.model).sites:
        weight = getattr(site.attention, site.weight) if site.weight else next(site.projection.parameters())
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
