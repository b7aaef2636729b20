from contextlib import ExitStack

import pytest
import torch
import transformers

from bertology import attention_entropy, attention_maps, attention_patterns, dissect, edge_ablation, prune_heads
from bertology.errors import UnknownAnatomy
from bertology.tap import tap
from helpers.zoo import BY_NAME, V4, batch, each_alone

# oracle: the maps that eager attention of transformers returns.

IMPLEMENTATIONS = ["sdpa", "eager"]


def eager_maps(family, inputs, **options):
    model = family.build(attention="eager", **options)
    with torch.no_grad():
        given = {k: v for k, v in inputs.items() if k != "labels"}
        return torch.stack(model(**given, output_attentions=True).attentions)


def real_rows(maps, mask):
    """Only the rows of real queries."""
    return maps.masked_fill(~mask[None, :, None, :, None], 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_eager_maps(family, implementation):
    inputs = batch()
    maps = attention_maps(family.build(attention=implementation), inputs)
    assert maps.values.shape == (2, 3, 4, 7, 7)
    expected = eager_maps(family, inputs)
    torch.testing.assert_close(real_rows(maps.values, maps.mask), real_rows(expected, maps.mask), rtol=0, atol=1e-14)


def test_the_comparison_can_fail():
    inputs = batch()
    maps = attention_maps(BY_NAME["bert"].build(), inputs)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(maps.values.transpose(-1, -2), eager_maps(BY_NAME["bert"], inputs))


def test_rows_sum_to_one_and_padding_gets_nothing(family):
    inputs = batch()
    maps = attention_maps(family.build(), inputs)
    rows = maps.values[:, maps.mask.nonzero()[:, 0], :, maps.mask.nonzero()[:, 1]]
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1], dtype=rows.dtype))
    assert real_rows(maps.values, maps.mask)[:, 1, :, :, 4:].abs().max() == 0


def test_causal_models_do_not_look_ahead(family):
    maps = attention_maps(family.build(), batch((6, 6))).values
    ahead = maps.triu(1).abs().max().item()
    assert (ahead == 0) == family.causal


def test_a_batch_is_its_examples(family):
    inputs = batch()
    model = family.build()
    many = attention_maps(model, inputs).values
    for row, one in enumerate(each_alone(inputs)):
        n = one["input_ids"].shape[1]
        torch.testing.assert_close(many[:, row, :, :n, :n], attention_maps(model, one).values[:, 0])


@pytest.mark.skipif(V4, reason="4.57 computes whole maps")
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_blocks_of_rows_make_the_same_maps(family, rows):
    model, inputs = family.build(), batch()
    anatomy, blocks, seen = dissect(model), {}, []
    with (
        torch.no_grad(),
        tap(anatomy, "attention", read=lambda s, x, r: (blocks.setdefault(s, []).append(x), seen.append(r)), rows=rows),
    ):
        logits = model(**inputs).logits
    maps = torch.stack([torch.cat(blocks[site], dim=2) for site in anatomy.sites])
    # Llama's eager softmax is in float32, whatever the model's type.
    torch.testing.assert_close(
        maps, attention_maps(model, inputs).values, rtol=0, atol=2e-6 if family.name == "llama" else 1e-12
    )
    torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=1e-6)
    if family.name != "gpt":
        assert len(seen) == 2 * -(-7 // rows)


def test_logits_under_the_tap_are_the_models_own(family):
    model, inputs = family.build(), batch()
    with torch.no_grad():
        plain = model(**inputs).logits
        with tap(dissect(model), "attention", read=lambda *_: None):
            tapped = model(**inputs).logits
        torch.testing.assert_close(tapped, plain, rtol=0, atol=1e-6)


def test_pruned_heads_are_nan_and_the_others_keep_their_numbers():
    family, inputs = BY_NAME["bert"], batch()
    model = family.build()
    whole = attention_maps(model, inputs).values
    prune_heads(model, {0: [1]})
    maps = attention_maps(model, inputs).values
    assert maps[0, :, 1].isnan().all()
    torch.testing.assert_close(maps[0, :, [0, 2, 3]], whole[0, :, [0, 2, 3]])


def test_encoder_decoder_has_three_stacks():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).double().eval()
    inputs = {**batch(labels=False), "decoder_input_ids": torch.randint(3, 40, (3, 5))}
    maps = attention_maps(model, inputs)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    for name, expected in (
        ("encoder", out.encoder_attentions),
        ("decoder", out.decoder_attentions),
        ("cross", out.cross_attentions),
    ):
        torch.testing.assert_close(maps.stacks[name], torch.stack(expected))
        torch.testing.assert_close(maps.stack(name).values, torch.stack(expected))
    with pytest.raises(
        ValueError, match=r"several stacks: take .stack\(name\) first, of 'encoder', 'decoder', 'cross'"
    ):
        _ = maps.values
    with pytest.raises(ValueError, match="no stack 'middle' in this result: it has encoder, decoder, cross"):
        maps.stack("middle")


def test_attention_from_two_kinds_of_tokens_has_no_one_map():
    """Pegasus-X's encoder attends from the text's tokens by blocks, and from global tokens to all."""
    config = transformers.PegasusXConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, num_global_tokens=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, block_size=4, max_position_embeddings=32,
    )  # fmt: skip
    model, ids = transformers.PegasusXModel(config).eval(), torch.randint(5, 50, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    for measure in (attention_maps, attention_entropy, attention_patterns):
        with pytest.raises(UnknownAnatomy, match="global tokens in another: there is no one map"):
            measure(model, inputs)


def gemma2(attention, cap):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, intermediate_size=24, attn_logit_softcapping=cap, query_pre_attn_scalar=1,
        attn_implementation=attention,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).double().eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(300)
    return model


@pytest.mark.skipif(not V4, reason="it refuses a soft cap under fused attention")
def test_a_soft_cap_is_left_out_until_the_last_tap_is_closed():
    model, inputs, maps = gemma2("sdpa", 0.2), batch((9, 9), labels=False), []
    wanted = attention_maps(model, inputs).values
    first, second = ExitStack(), ExitStack()
    for one, keep in ((first, lambda *_: None), (second, lambda site, x, rows: maps.append(x))):
        one.enter_context(tap(model, "attention", read=keep, whole=True))
    first.close()
    with torch.no_grad():
        model(**inputs)
    second.close()
    torch.testing.assert_close(torch.stack(maps), wanted, rtol=0, atol=1e-9)
    assert [layer.self_attn.attn_logit_softcapping for layer in model.model.layers] == [0.2, 0.2]


@pytest.mark.skipif(not V4, reason="it refuses a soft cap under fused attention")
def test_a_soft_cap_that_the_model_leaves_out_is_left_out():
    """transformers 4 computes Gemma 2 without it under fused attention: its maps are those of a model without a cap."""
    maps, changes = {}, {}
    tokens = {"low": [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}
    for name, (attention, cap) in {"fused": ("sdpa", 0.2), "none": ("eager", None), "capped": ("eager", 0.2)}.items():
        model = gemma2(attention, cap)
        inputs = batch((9, 9), labels=False)
        maps[name] = attention_maps(model, inputs).values
        changes[name] = edge_ablation(model, inputs | {"labels": inputs["input_ids"]}, tokens=tokens, by_layer=True)
        assert model.model.layers[0].self_attn.attn_logit_softcapping == cap
    torch.testing.assert_close(maps["fused"], maps["none"], rtol=0, atol=1e-6)
    torch.testing.assert_close(changes["fused"].change, changes["none"].change, rtol=0, atol=1e-6)
    assert (maps["capped"] - maps["none"]).abs().max() > 0.1
