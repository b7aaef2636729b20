"""Attention that may not look from some tokens to others."""

import copy
import math

import pytest
import torch
import transformers

from bertology import attention_maps, dissect, head_outputs, masked_attention, prune_heads, tap
from bertology.data.positions import with_positions
from bertology.errors import HeadError, ShapeError, UnknownAnatomy
from helpers.zoo import BY_NAME, PAD, batch, each_alone
from laws.laws import snapshot

# oracle: eager attention with the mask added to its scores


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def after_softmax(model, inputs, row, heads, cut):
    """The logits with `cut` in the place of one layer's edges, by renormalizing its weights in the eager function."""
    site = dissect(model).sites[row]
    weights = attention_maps(model, inputs).values[row]
    kept = weights.clone()
    kept[:, heads] = kept[:, heads].masked_fill(cut, 0)
    return site, kept / kept.sum(-1, keepdim=True).clamp_min(1e-300)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cut_edges_equal_renormalized_weights(family, attention):
    """The heads' outputs are those of the kept weights, renormalized, times the values."""
    model, inputs = family.build(attention=attention), batch((7, 7), labels=False)
    cut = torch.zeros(7, 7, dtype=torch.bool)
    cut[:, 2] = cut[3:, 1] = True
    _, wanted = after_softmax(model, inputs, 0, [1, 3], cut)
    before = head_outputs(model, inputs).values[0]
    with masked_attention(model, {"L0H1": cut, (0, 3): cut}):
        after = head_outputs(model, inputs).values[0]
    torch.testing.assert_close(after[:, :, [0, 2]], before[:, :, [0, 2]], atol=1e-6, rtol=1e-6)
    # the values follow from the outputs and the weights of the whole run
    whole = attention_maps(model, inputs).values[0].transpose(1, 2).transpose(1, 2)
    for head in (1, 3):
        values = torch.linalg.lstsq(whole[:, head].double(), before[:, :, head].double()).solution
        expected = wanted[:, head].double() @ values
        rows = [0, 1, 3, 4, 5, 6] if family.causal else list(range(7))
        tolerance = 1e-3 if family.name == "llama" else 1e-9  # whose eager softmax is in float32
        torch.testing.assert_close(after[:, rows, head].double(), expected[:, rows], atol=tolerance, rtol=tolerance)
    assert not torch.allclose(after[:, 4:, 1], before[:, 4:, 1])


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "distilbert"])
def test_a_cut_of_everything_is_padding(name):
    """All heads of all layers cut from a key: as if the attention mask hid it, for every other query."""
    model, inputs = BY_NAME[name].build("lm"), batch((6, 6), labels=False)
    hidden = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    hidden["attention_mask"][:, 2] = 0
    if name != "distilbert":
        hidden["position_ids"] = torch.arange(6)[None].expand(2, 6)
    with masked_attention(model, {"all": lambda query, key, tokens: key == 2}):
        found = logits(model, inputs)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[:, others], logits(model, hidden)[:, others], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found[:, 4:], logits(model, inputs)[:, 4:])


def test_a_cut_of_nothing_changes_nothing(family):
    model, inputs = family.build(), batch()
    whole = logits(model, inputs)
    before = snapshot(model)
    with masked_attention(model, {"all": lambda query, key, tokens: query < 0}):
        torch.testing.assert_close(logits(model, inputs), whole, atol=1e-6, rtol=1e-6)
    after = snapshot(model)
    assert all(before[key] == after[key] for key in ("hooks", "configs", "attention functions"))


def test_layers_heads_and_tokens():
    model, inputs = BY_NAME["bert"].build(), batch((6, 5))
    ids = inputs["input_ids"]
    token = int(ids[0, 3])
    by_function = lambda query, key, tokens: (tokens[:, None] == token) & (query != key)  # noqa: E731
    cut = (ids[:, None] == token) & ~torch.eye(6, dtype=torch.bool)
    with masked_attention(model, {1: by_function}):
        one = logits(model, inputs)
    with masked_attention(model, {1: cut}):
        other = logits(model, inputs)
    with masked_attention(model, {(1, head): cut for head in range(4)}):
        each = logits(model, inputs)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, each)
    assert not torch.allclose(one, logits(model, inputs))


def test_a_query_with_no_key_left_gets_nothing():
    from bertology import gated

    model, inputs = BY_NAME["bert"].build(), batch((6, 6))
    with masked_attention(model, {"L0H2": torch.ones(6, 6, dtype=torch.bool)}):
        found = logits(model, inputs)
    gates = torch.ones(2, 4)
    gates[0, 2] = 0
    with gated(model, gates):
        torch.testing.assert_close(found, logits(model, inputs))


def test_tiny_weights_are_renormalized():
    """Where all of a query's weight is on the key that is cut, its other scores still tell the rest apart."""
    model, inputs = BY_NAME["bert"].build().float(), batch((6,))
    with torch.no_grad():
        for part in (model.bert.encoder.layer[0].attention.self.query, model.bert.encoder.layer[0].attention.self.key):
            part.weight *= 30
    weights = attention_maps(model, inputs).values[0, 0]
    cut = torch.zeros(1, 6, 6, dtype=torch.bool).scatter(2, weights[0].argmax(-1)[None, :, None], True)
    with masked_attention(model, {"L0H0": cut}):
        left = attention_maps(model, inputs).values[0, 0, 0]
    torch.testing.assert_close(left.sum(-1), torch.ones(6))
    assert not left.masked_select(cut[0]).any()


def test_maps_are_read_with_their_edges_cut(monkeypatch, family):
    """Also where maps are otherwise read in blocks of query rows."""
    from bertology.tap import interface_route

    monkeypatch.setattr(interface_route, "BLOCK_BYTES", 300)
    model, inputs = family.build(), batch((6, 6), labels=False)
    before = attention_maps(model, inputs).values
    with masked_attention(model, {1: lambda query, key, tokens: key == query - 1}):
        after = attention_maps(model, inputs).values
    expected = before[1] - torch.diag_embed(before[1].diagonal(-1, 2, 3), -1)
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(after[0], before[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(after[1], expected, atol=1e-6, rtol=1e-6)


def test_pruned_heads_and_encoder_decoders():
    model, inputs = BY_NAME["gpt2"].build(), batch((6,))
    prune_heads(model, {0: [1]})
    with masked_attention(model, {0: lambda query, key, tokens: key == 0}):
        assert logits(model, inputs).isfinite().all()
    with pytest.raises(HeadError, match="was pruned before"), masked_attention(model, {"L0H1": torch.ones(6, 6) > 0}):
        pass
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 6]] * 3)}
    whole = logits(model, inputs)
    with masked_attention(model, {"XL0H1": lambda query, key, tokens: tokens[:, None] > 20}):
        assert not torch.allclose(logits(model, inputs), whole)


def test_errors_say_what_to_do():
    model, inputs = BY_NAME["bert"].build(), batch((6,))
    with (
        pytest.raises(ShapeError, match=r"a cut is a bool tensor \[query, key\]"),
        masked_attention(model, {0: torch.ones(6)}),
    ):
        pass
    with pytest.raises(HeadError, match="layer 7 is out of range"), masked_attention(model, {7: torch.ones(6, 6) > 0}):
        pass
    wrong = {0: torch.ones(4, 4) > 0}
    told = r"\[batch, query, key\] = \[1, 6, 6\], got \[4, 4\]"
    with pytest.raises(ShapeError, match=told), masked_attention(model, wrong):
        logits(model, inputs)
    numbers = {0: lambda query, key, tokens: key - query}
    with pytest.raises(ShapeError, match="True or False for pairs of tokens"), masked_attention(model, numbers):
        logits(model, inputs)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_statistics_without_maps_see_the_cuts(monkeypatch, name):
    from bertology import attention_entropy
    from bertology.tap import interface_route

    model, inputs = BY_NAME[name].build(), batch((7, 7), labels=False)
    cuts = {"all": lambda query, key, tokens: key == query - 1}
    with masked_attention(model, cuts):
        expected = attention_entropy(model, inputs).mean
        monkeypatch.setattr(interface_route, "may_go_without_map", lambda query, key: True)
        found = attention_entropy(model, inputs).mean
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, attention_entropy(model, inputs).mean)


def test_a_query_with_no_text_left_does_not_look_at_padding(family):
    """All text is cut from one query: padding, which the model masks itself, is not all that is left to see."""
    model, given = family.build("lm"), batch((7, 4, 5), labels=False)
    cut = {1: lambda query, key, tokens: (query == 2) & (tokens[:, None] != PAD)}
    with masked_attention(model, cut), torch.no_grad():
        padded = model(**given).logits
        alone = [model(**one).logits for one in each_alone(given)]
    for row, one in enumerate(alone):
        torch.testing.assert_close(padded[row : row + 1, : one.shape[1]], one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cuts", [["all"], [1], []])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_queries_that_see_padding_only_are_finite(dtype, cuts):
    """Llama computes its softmax in float32: the lowest float64 is -inf there, and without any key it is NaN."""
    model, given = BY_NAME["llama"].build("lm").to(dtype), batch((7, 4, 5), labels=False, side="left")
    given = with_positions(model, given)
    with masked_attention(model, {what: lambda query, key, tokens: key < 0 for what in cuts}), torch.no_grad():
        found = model(**given).logits
    with torch.no_grad():
        expected = model(**given).logits
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_a_query_with_no_key_left_does_not_look_at_what_a_small_number_masks():
    """The first GPT masks later keys by -10000, not by the lowest number."""
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model, ids = transformers.OpenAIGPTLMHeadModel(config).eval(), torch.randint(5, 50, (2, 5))
    with masked_attention(model, {"L0H1": lambda query, key, tokens: key == query * 0}):
        outputs = head_outputs(model, {"input_ids": ids}).values[0]
    assert not outputs[:, 0, 1].any()
    assert outputs[:, 1:, 1].any()
    assert outputs[:, 0, 0].any()


def test_a_query_with_no_key_left_does_not_look_at_what_a_mask_of_pairs_hides():
    """XLNet hides pairs by -1e30: neither the lowest float32, nor padding, nor later keys alone."""
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=4, d_head=4, d_inner=24)
    model, ids = transformers.XLNetModel(config).eval(), torch.randint(5, 40, (1, 4))
    hidden = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    inputs = {"input_ids": ids, "perm_mask": hidden[None].float(), "attention_mask": torch.ones_like(ids)}
    cut = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    weights = attention_maps(model, inputs).values[0].masked_fill(cut, 0)  # oracle: the weights that are left
    with masked_attention(model, {0: cut}):
        found = attention_maps(model, inputs).values[0]
    torch.testing.assert_close(found, (weights / weights.sum(-1, keepdim=True)).nan_to_num(0))
    assert found.sum(-1)[0, 0].tolist() == pytest.approx([0, 1, 0, 1])


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # Funnel of transformers 4
def test_a_query_with_no_key_left_does_not_look_at_pooled_padding():
    """Funnel pools the keys of its later blocks, whose number is not that of tokens, and masks them by -1e6."""
    torch.manual_seed(0)
    config = transformers.FunnelConfig(
        vocab_size=40, block_sizes=[1, 1, 1], d_model=16, n_head=4, d_head=4, d_inner=24, num_decoder_layers=1
    )
    model, ids = transformers.FunnelBaseModel(config).eval(), torch.randint(5, 40, (1, 16))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(16) < 6).long()[None]}

    def weights(cut):
        seen = {}
        with (
            masked_attention(model, {2: cut}),
            tap(model, "attention", read=lambda site, x, *_: seen.update({site: x})),
        ):
            model(**inputs)
        return list(seen.values())[2]

    whole = weights(lambda query, key, tokens: (key < 0) & (query < 0))
    text = (whole > 0)[0, 0].any(0)
    assert (whole.shape[-1], text.tolist()) == (8, [True] * 3 + [False] * 5)
    assert not weights(lambda query, key, tokens: text & (query >= 0)).any()


def with_low_scores(name):
    """Two models of the same function: the scores of the second are 9,000 lower, for every query and key alike."""
    plain = BY_NAME[name].build("lm", attention="eager")
    low = copy.deepcopy(plain)
    for model, size in ((plain, 0), (low, math.sqrt(9000 * math.sqrt(4)))):
        for module in [module for module in model.modules() if type(module).__name__ in LINES]:
            parts = dict(module.named_children())
            query, key = (LINES[type(module).__name__](parts, which) for which in (0, 1))
            with torch.no_grad():
                for (weight, bias), sign in ((query, 1), (key, -1)):
                    weight[:] = 0
                    bias[:] = sign * size
    return plain, low


def of_rows(parts, names, which):
    """The first dimension of each head (of 4): its weights and biases, in layers of their own."""
    part = parts[names[which]]
    return part.weight.data[::4], part.bias.data[::4]


def of_columns(parts, which):
    """The same in a layer of all three, whose weight is [input, output]."""
    part, start = parts["c_attn"], 16 * which
    return part.weight.data[:, start : start + 16 : 4], part.bias.data[start : start + 16 : 4]


LINES = {
    "BertSelfAttention": lambda parts, which: of_rows(parts, ("query", "key"), which),
    "GPT2Attention": of_columns,
    "Attention": of_columns,  # the first GPT
}


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt"])
def test_low_scores_are_no_padding(name):
    """A number that is added to all scores of a query changes no weight: nor does it where edges are cut."""
    plain, low = with_low_scores(name)
    inputs = batch((7, 5), labels=False)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits(low, inputs)[real], logits(plain, inputs)[real], atol=1e-8, rtol=1e-8)
    for cuts in ({"all": lambda query, key, tokens: key == 0}, {"L0H1": lambda query, key, tokens: key < query}):
        with masked_attention(plain, cuts):
            wanted = logits(plain, inputs)
        with masked_attention(low, cuts):
            found = logits(low, inputs)
        torch.testing.assert_close(found[real], wanted[real], atol=1e-8, rtol=1e-8)
        assert not torch.allclose(wanted[real], logits(plain, inputs)[real])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_mask_of_true_and_false_is_no_number_to_add(name):
    """A mask [batch, 1, query, key] for fused attention; eager functions add what they get to the scores."""
    model, inputs = BY_NAME[name].build("lm", attention="sdpa"), batch((7, 5), labels=False)
    seen = inputs["attention_mask"].bool()[:, None, None] & torch.ones(7, 7).tril().bool()
    wanted, given = logits(model, inputs), {**inputs, "attention_mask": seen}
    real = inputs["attention_mask"].bool()
    tolerance = 1e-4 if name == "llama" else 1e-9  # whose eager softmax is in float32
    with masked_attention(model, {}):
        torch.testing.assert_close(logits(model, given)[real], wanted[real], atol=tolerance, rtol=tolerance)
    cut = {0: lambda query, key, tokens: key == query - 1}
    with masked_attention(model, cut):
        torch.testing.assert_close(
            logits(model, given)[real], logits(model, inputs)[real], atol=tolerance, rtol=tolerance
        )


def longformer():
    """As many heads as tokens: its softmax [batch, query, head, key] has the shape of another one."""
    config = transformers.LongformerConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=8, intermediate_size=24,
        attention_window=[4], max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    return transformers.LongformerModel(config), 8


def big_bird():
    config = transformers.BigBirdConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=64, block_size=4, num_random_blocks=1,
    )  # fmt: skip
    return transformers.BigBirdModel(config), 40


def pegasus_x():
    config = transformers.PegasusXConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, num_global_tokens=2,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, block_size=4, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.PegasusXModel(config), 8


def prophetnet():
    config = transformers.ProphetNetConfig(
        vocab_size=50, hidden_size=16, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.ProphetNetModel(config), 8


@pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
@pytest.mark.parametrize("build", [longformer, big_bird, pegasus_x, prophetnet])
def test_edges_that_one_map_does_not_show_are_not_cut(build):
    model, tokens = build()
    model = model.eval()
    ids = torch.randint(5, 50, (2, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    layer = next(site.row for site in dissect(model).sites if build is not prophetnet or site.stack == "decoder")
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        cuts = {layer: lambda query, key, tokens: key == query * 0}
        with pytest.raises(UnknownAnatomy, match="none of its edges can be cut"), masked_attention(model, cuts):
            model(**inputs)
        torch.testing.assert_close(model(**inputs).last_hidden_state, before, atol=0, rtol=0)
