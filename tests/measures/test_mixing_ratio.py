"""The parts of what attention blocks pass on, and how much of it comes from other tokens."""

import numpy as np
import pytest
import torch
import transformers

from bertology import attention_rollout, block_influence, dissect, mixing_ratio, prune_heads, tap
from bertology.errors import DataError, UnknownAnatomy
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, PAD, V4, batch, each_alone
from oracles import carried

# oracle: numpy loops over eager maps, hidden states and weights


def parts_of(model, inputs, **options):
    found = {}
    with tap(model, "mixing", read=lambda site, mixed: found.setdefault(site.row, mixed), **options), torch.no_grad():
        model(**inputs)
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_loops_over_vectors(name, attention):
    inputs = batch(labels=False)
    eager = BY_NAME[name].build(attention="eager").base_model
    expected, biases, outputs = carried.mixed(eager, name, inputs)
    np.testing.assert_allclose(expected.sum(3) + biases, outputs, atol=1e-10)  # the parts are the whole
    model = BY_NAME[name].build(attention=attention).base_model
    tolerance = 1e-5 if name == "llama" else 1e-10
    ratios, rollouts = [], attention_rollout(model, inputs, weighting="block")
    for row, mixed in parts_of(model, inputs, whole=True).items():
        norms = np.linalg.norm(expected[row], axis=-1)
        tokens = inputs["attention_mask"].sum(1).tolist()
        for b, n in enumerate(tokens):
            np.testing.assert_allclose(mixed.norms()[b, :n, :n], norms[b, :n, :n], rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(mixed.whole()[b, :n], outputs[row, b, :n], rtol=tolerance, atol=tolerance)
            own = expected[row, b, np.arange(n), np.arange(n)]
            context = expected[row, b, :n, :n].sum(1) - own
            one, other = (np.linalg.norm(x, axis=-1) for x in (context, own))
            ratios += [(row, *pair) for pair in zip(one / (one + other), one, strict=True)]
    found = mixing_ratio(model, inputs)
    for row in range(2):
        mine = np.array([ratio for at, ratio, _ in ratios if at == row])
        assert float(found.ratio[row]) == pytest.approx(mine.mean(), rel=1e-6)
        assert float(found.std[row]) == pytest.approx(mine.std(), rel=1e-5)
        assert float(found.ratio[row]) != pytest.approx(mine.mean() * 1.001, rel=1e-6)  # it can fail
    maps = [np.linalg.norm(expected[row, 0], axis=-1) for row in range(2)]
    steps = [x / x.sum(-1, keepdims=True) for x in maps]
    np.testing.assert_allclose(rollouts.values[1, 0], steps[1] @ steps[0], rtol=tolerance, atol=tolerance)


def test_parts_add_up_and_padding_changes_nothing(family):
    model, inputs = family.build(), batch(labels=False)
    for mixed in parts_of(model, inputs).values():
        assert (mixed.norm is not None) == (family.name not in ("gpt2", "llama"))  # post-norm
    found = mixing_ratio(model, inputs)
    alone = mixing_ratio(model, each_alone(inputs))
    torch.testing.assert_close(found.ratio, alone.ratio, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.attention, alone.attention, rtol=1e-5, atol=1e-8)
    assert found.tokens.tolist() == [16, 16]
    if family.name in ("gpt2", "llama"):
        torch.testing.assert_close(found.ratio, found.unnormed)


def test_one_token_mixes_nothing_and_a_silent_block_passes_on_its_input(family):
    model = family.build()
    assert mixing_ratio(model, batch((1, 1), labels=False)).ratio.tolist() == [0, 0]
    for site in dissect(model).sites:
        torch.nn.init.zeros_(site.projection.weight)
    assert mixing_ratio(model, batch(labels=False)).ratio.tolist() == [0, 0]
    rollout = attention_rollout(model, batch((4,), labels=False), weighting="block").values
    torch.testing.assert_close(rollout, torch.eye(4, dtype=rollout.dtype).expand_as(rollout))


@pytest.mark.parametrize("name", ["bert", "albert", "llama"])
def test_blocks_of_query_rows_give_the_same(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    whole, blocks = parts_of(model, inputs), parts_of(model, inputs, rows=2)
    for row, mixed in whole.items():
        torch.testing.assert_close(mixed.context, blocks[row].context)
        torch.testing.assert_close(mixed.own, blocks[row].own)


def test_padding_before_the_text():
    model = BY_NAME["llama"].build()
    left, right = (mixing_ratio(model, batch(side=side)) for side in ("left", "right"))
    torch.testing.assert_close(left.ratio, right.ratio, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pruned_heads_bring_nothing(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    prune_heads(model, {0: [1, 3], 1: [0, 1, 2, 3]})
    mixed = parts_of(model, inputs)
    assert list(mixed) == [0]
    found = mixing_ratio(model, inputs)
    assert found.ratio[1].isnan()
    assert 0 < found.ratio[0] < 1


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_decoders(kind):
    model, ids = seq2seq(kind), torch.randint(3, 40, (2, 5))
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    found = mixing_ratio(model, inputs)
    for mixed in parts_of(model, inputs).values():
        assert (mixed.norm is not None) == (kind == "bart")
    assert not bool(found.ratio.isnan().any())
    assert found.stack("encoder").tokens.tolist() == [10, 10]
    assert found.stack("cross").tokens.tolist() == [6, 6]
    torch.testing.assert_close(found.stack("cross").attention, torch.ones(2, dtype=torch.float64))
    assert {name: tuple(x.shape) for name, x in attention_rollout(model, inputs, weighting="block").stacks.items()} == {
        "encoder": (2, 2, 5, 5), "decoder": (2, 2, 3, 3),
    }  # fmt: skip


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": PAD}
MORE = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
    "xlm": {"emb_dim": 16, "n_layers": 2, "n_heads": 4, "n_words": 40},
    "modernbert": {"intermediate_size": 24} | dict.fromkeys(("cls_token_id", "bos_token_id"), 1)
    | dict.fromkeys(("sep_token_id", "eos_token_id"), 2),
    "gemma2": {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4},
    "olmo2": {"intermediate_size": 24, "num_key_value_heads": 2, "eos_token_id": 2},
    "mixtral": {"intermediate_size": 24, "num_key_value_heads": 2},
}  # fmt: skip
# Which families scale the sum, or what the heads add alone, by a norm.
NORMED = {"mpnet": "norm", "deberta-v2": "norm", "xlm": "norm", "gemma2": "inner", "olmo2": "inner"}


def small(kind, **more):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **MORE.get(kind, {"intermediate_size": 24}), **more})
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", *MORE])
def test_more_families(kind):
    if kind == "modernbert" and V4:
        pytest.skip("its own padding in transformers 4")
    for mixed in parts_of(small(kind), batch((6, 6), labels=False)).values():
        normed = [name for name in ("inner", "norm") if getattr(mixed, name) is not None]
        assert normed == ([NORMED[kind]] if kind in NORMED else [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_half_precision(name, dtype):
    model, inputs = BY_NAME[name].build().float(), batch(labels=False)
    expected = mixing_ratio(model, inputs)
    found = mixing_ratio(model.to(dtype), inputs)
    torch.testing.assert_close(found.ratio, expected.ratio, atol=0.02, rtol=0)


def test_images():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8, patch_size=4
    )
    found = mixing_ratio(transformers.ViTModel(config).eval(), {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert found.tokens.tolist() == [10, 10]


def test_sums_that_are_not_of_attention_and_residual_alone_are_refused():
    parallel = small("gpt_neox", bos_token_id=1, eos_token_id=2)
    inputs = batch((6,), labels=False)
    with pytest.raises(UnknownAnatomy, match=r"side by side.*weighting='norm'"):
        mixing_ratio(parallel, inputs)
    block_influence(parallel, inputs)  # it still runs
    scaled = small("granite", num_key_value_heads=2, residual_multiplier=0.5)
    with pytest.raises(UnknownAnatomy, match="nowhere summed up"):
        mixing_ratio(scaled, inputs)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_heads_that_pass_on_something_else_are_refused(name):
    model, inputs = BY_NAME[name].build(), batch(labels=False)
    hook = dissect(model).sites[1].place.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    with pytest.raises(UnknownAnatomy, match="is not the sum of the values"):
        mixing_ratio(model, inputs)
    hook.remove()
    mixing_ratio(model, inputs)


def test_other_weightings_are_refused():
    with pytest.raises(DataError, match="weighting must be 'attention', 'norm' or 'block', got 'value'"):
        attention_rollout(BY_NAME["bert"].build(), batch(labels=False), weighting="value")
