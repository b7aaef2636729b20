import pytest
import torch

from bertology import attention_maps, repeat_scores, repeated_tokens
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch, each_alone
from oracles import clark as oracles

SCORES = ("induction", "duplicate", "previous")


def repetitive(**options):
    inputs = batch((9, 4, 6), **options)
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3 + 3, inputs["input_ids"])
    return inputs


def check(found, expected):
    for name in SCORES:
        torch.testing.assert_close(getattr(found, name), expected[name], atol=1e-9, rtol=0)


def test_equals_loops_over_the_maps(family):
    model, inputs = family.build(), repetitive()
    maps = attention_maps(model, inputs)
    expected = oracles.repeats(maps.values, maps.mask, inputs["input_ids"])
    check(repeat_scores(model, inputs), expected)
    check(repeat_scores(model, inputs, rows=2), expected)
    expected["induction"][1, 2] += 1e-6
    with pytest.raises(AssertionError):
        check(repeat_scores(model, inputs), expected)


def test_batches_and_padding_do_not_matter(family):
    model, inputs = family.build(), repetitive()
    together, alone = repeat_scores(model, inputs), repeat_scores(model, each_alone(inputs))
    for name in SCORES:
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), atol=1e-6, rtol=0)


def test_left_padding():
    model = BY_NAME["llama"].build()
    left, right = (repeat_scores(model, repetitive(side=side)) for side in ("left", "right"))
    for name in SCORES:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), atol=1e-6, rtol=0)


def test_no_repetition_has_no_score():
    found = repeat_scores(BY_NAME["gpt2"].build(), {"input_ids": torch.tensor([[4, 5, 6]])})
    assert found.induction.isnan().all()
    assert found.duplicate.isnan().all()
    assert not found.previous.isnan().any()
    assert found.repeats.tolist() == found.followers.tolist() == [0, 0]
    assert found.queries.tolist() == [2, 2]


def test_a_decoder_behind_an_encoder_repeats_its_own_tokens():
    """As long as the encoder's text, but another; and when none is given, BART shifts the text into its decoder."""
    import transformers

    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0,
    )  # fmt: skip
    model = transformers.BartModel(config).double().eval()
    text, other = torch.tensor([[5, 6, 5, 7, 8]]), torch.tensor([[9, 4, 9, 9, 4]])
    maps = attention_maps(model, {"input_ids": text, "decoder_input_ids": other}).stack("decoder")
    expected = oracles.repeats(maps.values, maps.mask, other)
    check(repeat_scores(model, {"input_ids": text, "decoder_input_ids": other}).stack("decoder"), expected)
    alone = repeat_scores(model, {"input_ids": text, "decoder_attention_mask": torch.ones_like(text)})
    assert alone.stack("decoder").previous.isnan().all()
    assert not alone.stack("encoder").previous.isnan().any()


def test_repeated_tokens_repeat():
    state = torch.get_rng_state()
    ids = repeated_tokens(range(5, 40), length=6, examples=3, times=3, seed=1)["input_ids"]
    assert torch.equal(torch.get_rng_state(), state)
    assert ids.shape == (3, 18)
    assert torch.equal(ids[:, :6], ids[:, 6:12])
    assert torch.equal(ids[:, :6], ids[:, 12:])
    assert all(len(set(row[:6].tolist())) == 6 for row in ids)
    assert ids.min() >= 5
    assert not torch.equal(ids, repeated_tokens(range(5, 40), length=6, examples=3, times=3, seed=2)["input_ids"])


def test_errors():
    with pytest.raises(DataError, match="wanted length from 1 to 3, the number of ids, times 2 or more"):
        repeated_tokens(range(3), length=4)
    with pytest.raises(DataError, match="times 1"):
        repeated_tokens(range(3), length=2, times=1)
    with pytest.raises(DataError, match="the batch has no input_ids"):
        repeat_scores(BY_NAME["bert"].build(), {"inputs_embeds": torch.randn(1, 3, 16, dtype=torch.float64)})


def built_to_repeat(tokens=16):
    """A GPT-2 whose head 0.0 looks at the token before and notes it, and whose head 1.1 looks for where it was noted.

    The residual stream is [token, place, token before], each one-hot, so that the norms only shift and scale it.
    """
    import transformers

    width = 3 * tokens
    config = transformers.GPT2Config(
        vocab_size=tokens, n_positions=tokens, n_layer=2, n_head=2, n_embd=width, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2Model(config).double().eval()
    token, place, before = (slice(i * tokens, (i + 1) * tokens) for i in range(3))
    eye, strong = torch.eye(tokens), 30.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        model.wte.weight[:, token] = eye
        model.wpe.weight[:, place] = eye
        first, second = (block.attn for block in model.h)
        query, key, value = (slice(i * width, i * width + tokens) for i in range(3))
        first.c_attn.weight[place, query] = strong * eye.roll(-1, 1)  # asks for the place before its own
        first.c_attn.weight[place, key] = eye
        first.c_attn.weight[token, value] = eye / first_scale(tokens)
        first.c_proj.weight[:tokens, before] = eye
        head = width // 2
        query, key = (slice(i * width + head, i * width + head + tokens) for i in range(2))
        second.c_attn.weight[token, query] = strong * eye
        second.c_attn.weight[before, key] = eye
    return model


def first_scale(tokens):
    """What the first norm makes of a one of [token, place, 0], less what it makes of a zero: 1/σ."""
    x = torch.zeros(3 * tokens, dtype=torch.float64)
    x[0] = x[tokens] = 1
    return 1 / x.std(correction=0).item()


def test_a_gpt2_built_to_repeat_shows_its_circuit():
    found = repeat_scores(built_to_repeat(), repeated_tokens(range(16), length=8, examples=4))
    assert found.previous[0, 0] > 0.99
    assert found.induction[1, 1] > 0.9  # the first token's own note is its own: half of one query's attention
    assert found.induction[1, 1] < 1
    others = [(0, 0), (0, 1), (1, 0)]
    assert max(found.induction[place].item() for place in others) < 0.2
    assert found.duplicate[1, 1] < 0.1
