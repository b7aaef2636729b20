"""The parts of what attention blocks pass on, and how much of it comes from other tokens."""

import copy
import sys

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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
def test_adapters_on_the_output_projection():
    """oracle: the model into whose weights they were merged"""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    model, inputs = BY_NAME["bert"].build(), batch(labels=False)
    before = mixing_ratio(model, inputs).ratio
    config = peft.LoraConfig(r=2, target_modules=["attention.output.dense"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).double().eval()
    found = mixing_ratio(adapted, inputs).ratio
    assert (found - before).abs().max() > 1e-4
    torch.testing.assert_close(mixing_ratio(adapted.merge_and_unload(), inputs).ratio, found)


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


GROUPED = {"num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}
# How a family's values are read of a block: the layer that returns them, and where they are in [..., head, width].
SPECIAL = {
    "gpt_neox": ({"bos_token_id": 1, "eos_token_id": 2}, "attention.query_key_value", "attention.dense", slice(8, 12)),
    "falcon": (
        {"multi_query": False, "alibi": False}, "self_attention.query_key_value", "self_attention.dense", slice(8, 12)
    ),
    "gptj": (
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2, "bos_token_id": 1, "eos_token_id": 2},
        "attn.v_proj", "attn.out_proj", slice(4),
    ),
    "cohere": (GROUPED, "self_attn.v_proj", "self_attn.o_proj", slice(4)),
    "phi": (GROUPED, "self_attn.v_proj", "self_attn.dense", slice(4)),
    "granite": (GROUPED | {"residual_multiplier": 0.22}, "self_attn.v_proj", "self_attn.o_proj", slice(4)),
    "deepseek_v3": (
        {"q_lora_rank": 6, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 6,
         "first_k_dense_replace": 2, "num_key_value_heads": 4, "eos_token_id": 2, "bos_token_id": 1},
        "self_attn.kv_b_proj", "self_attn.o_proj", slice(4, 10),
    ),
}  # fmt: skip


def of_blocks(model, kind, inputs):
    """[layer]: the arguments of the slow twin, of one model with eager attention; and what an MLP adds beside."""
    _, layer_of_values, projection, where = SPECIAL[kind]
    blocks = model.layers if hasattr(model, "layers") else model.h
    values = [[] for _ in blocks]
    hooks = [
        block.get_submodule(layer_of_values).register_forward_hook(lambda m, a, y, seen=seen: seen.append(y))
        for block, seen in zip(blocks, values, strict=True)
    ]
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    heads = model.config.num_key_value_heads if kind in ("cohere", "phi", "granite") else 4
    factor = getattr(model.config, "residual_multiplier", 1.0)
    for layer, block in enumerate(blocks):
        value = values[layer][0].flatten(1, -2).unflatten(-1, (heads, -1))[..., where]
        weight = block.get_submodule(projection).weight.T
        tensors = out.attentions[layer], value, weight, out.hidden_states[layer]
        yield *(x.detach().double().numpy() for x in tensors), factor


@pytest.mark.parametrize("kind", SPECIAL)
def test_mlps_beside_the_attention_scaled_sums_and_latent_attention(kind):
    config = dict(SPECIAL[kind][0])
    model = small(kind, **config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter.mul_(8)
    inputs = batch((6, 4), labels=False)
    real = inputs["attention_mask"].bool().numpy()
    expected = [carried.mixing_ratios(*one)[real] for one in of_blocks(model, kind, inputs)]
    found = mixing_ratio(model, inputs)
    for row, one in enumerate(expected):
        assert 0.05 < one.mean() < 0.95
        assert float(found.ratio[row]) == pytest.approx(one.mean(), rel=2e-5)
        assert float(found.ratio[row]) != pytest.approx(one.mean() * 1.001, rel=2e-5)  # it can fail
    mixed = parts_of(model, inputs)
    assert [x.beside is not None for x in mixed.values()] == [kind not in ("granite", "deepseek_v3")] * 2
    assert mixed[0].factor == pytest.approx(0.22 if kind == "granite" else 1, rel=1e-4)
    with torch.no_grad():
        second = model(**inputs, output_hidden_states=True).hidden_states[1]
    if mixed[0].beside is not None:
        torch.testing.assert_close(mixed[0].whole() + mixed[0].beside, second, rtol=1e-4, atol=1e-4)
    rollout = attention_rollout(model, inputs, weighting="block").values
    torch.testing.assert_close(rollout.sum(-1)[:, torch.tensor(real)], torch.ones(2, 10).double(), rtol=1e-5, atol=1e-5)
    first = parts_of(model, inputs, whole=True)[0]
    one, other = first.norms()[0, 5, :6].clone(), torch.linalg.vector_norm(first.of_heads(first.context)[0, 5].double())
    one[5] = 0
    assert float(other) <= float(one.sum()) * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["gpt_neox", "granite"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mlps_beside_and_scaled_sums_in_half_precision(kind, dtype):
    model, inputs = small(kind, **SPECIAL[kind][0]), batch((6, 4), labels=False)
    expected = mixing_ratio(model, inputs)
    torch.testing.assert_close(mixing_ratio(model.to(dtype), inputs).ratio, expected.ratio, atol=0.02, rtol=0)


def test_sums_with_anything_else_in_them_are_refused():
    model, inputs = small("gpt_neox", **SPECIAL["gpt_neox"][0]), batch((6,), labels=False)
    hook = model.layers[0].register_forward_hook(
        lambda module, args, y: (y[0] * 1.1, *y[1:]) if isinstance(y, tuple) else y * 1.1
    )
    with pytest.raises(UnknownAnatomy, match=r"nowhere summed up.*weighting='norm'"):
        mixing_ratio(model, inputs)
    block_influence(model, inputs)  # it still runs
    hook.remove()
    mixing_ratio(model, inputs)
    half = small("granite", **SPECIAL["granite"][0])
    hook = half.layers[0].self_attn.register_forward_hook(lambda module, args, y: (y[0].relu(), *y[1:]))
    with pytest.raises(UnknownAnatomy, match="nowhere summed up"):
        mixing_ratio(half, inputs)


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


def test_quantized_sums_are_refused_by_the_library():
    with pytest.raises(UnknownAnatomy, match="is nowhere summed up with the residual stream"):
        mixing_ratio(small("ibert"), batch(labels=False))


def test_the_mlps_of_a_model_are_looked_for_once(monkeypatch):
    asked = []
    sums = sys.modules["bertology.tap.block_sums"]
    monkeypatch.setattr(sums, "dissect_mlps", lambda anatomy, real=sums.dissect_mlps: asked.append(1) or real(anatomy))
    mixing_ratio(small("gpt_neox"), [batch(labels=False, seed=seed) for seed in range(3)])
    assert asked == [1]


class _Adapted(torch.nn.Module):
    """A linear layer, and the product of two small ones beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, width = base, base.in_features
        self.down, self.up = torch.nn.Linear(width, 2, bias=False), torch.nn.Linear(2, base.out_features, bias=False)
        self.double()

    def forward(self, x):
        return self.base(x) + 0.5 * self.up(self.down(x))

    def merged(self):
        made = copy.deepcopy(self.base)
        with torch.no_grad():
            made.weight += 0.5 * self.up.weight @ self.down.weight
        return made


# oracle: the model with the adapters added to its weights
@pytest.mark.parametrize("names", [("query", "value"), ("query",), ("key", "value")])
def test_queries_and_values_with_adapters(names):
    model = BY_NAME["bert"].build()
    merged = copy.deepcopy(model)
    for mine, theirs in zip(model.bert.encoder.layer, merged.bert.encoder.layer, strict=True):
        for name in names:
            adapted = _Adapted(getattr(mine.attention.self, name))
            setattr(mine.attention.self, name, adapted)
            setattr(theirs.attention.self, name, adapted.merged())
    found, expected = (mixing_ratio(one, batch(labels=False)) for one in (model, merged))
    for field in ("ratio", "unnormed", "attention", "std"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-12, atol=1e-12)
    blocks = [attention_rollout(one, batch(labels=False), weighting="block").values for one in (model, merged)]
    torch.testing.assert_close(*blocks, rtol=1e-12, atol=1e-12)
