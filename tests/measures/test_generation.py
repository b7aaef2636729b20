import pytest
import torch
import transformers

from bertology import capture, capture_generation, gated, prune_heads
from bertology.errors import DataError
from helpers.generation import bart, texts
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, LLAMA, PAD, V4, WIDE, batch

# oracle: one forward pass over the prompt and what was generated; and what transformers' own `generate` returns.
ALL = {"hidden": True, "maps": True, "heads": True}


def prompts(side="left"):
    return {name: x for name, x in batch((5, 3, 4), side=side).items() if name != "labels"}


def sliding():
    torch.manual_seed(0)
    config = transformers.MistralConfig(**LLAMA, sliding_window=3)
    return transformers.MistralForCausalLM(config).double().eval()


MODELS = {name: (lambda name=name: BY_NAME[name].build("lm")) for name in ("gpt2", "gpt", "llama")} | {
    "sliding": sliding
}


def real_rows(found, kind, stack):
    """[row, ...]: the values of real tokens."""
    values, mask = getattr(found, kind).stacks[stack], getattr(found, kind).masks[stack]
    tokens = values.movedim(3, 2) if kind == "maps" else values
    return tokens[:, mask]


def check_equals_one_pass(found, plain):
    for kind in ALL:
        mine, expected = getattr(found, kind), getattr(plain, kind)
        assert mine.labels == expected.labels
        assert mine.stacks.keys() == expected.stacks.keys()
        for stack, x in mine.stacks.items():
            assert x.shape == expected.stacks[stack].shape
            assert torch.equal(mine.masks[stack], expected.masks[stack])
            torch.testing.assert_close(real_rows(found, kind, stack), real_rows(plain, kind, stack), rtol=0, atol=1e-10)


def one_pass(model, found):
    mask = found.hidden.mask.long()
    return capture(model, {"input_ids": found.sequences[:, :-1], "attention_mask": mask}, **ALL)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"do_sample": True}, {"cache_implementation": "static"}], ids=str
)
def test_equals_one_pass_over_what_was_generated(name, options):
    model = MODELS[name]()
    if name == "gpt" and "cache_implementation" in options:
        pytest.skip("it has no cache")
    if name == "gpt" and V4:
        with pytest.raises(DataError, match="generates without the position_ids of padded prompts"):
            capture_generation(model, prompts(), max_new_tokens=2, maps=True)
        return
    found = capture_generation(model, prompts(), max_new_tokens=4, pad_token_id=PAD, **ALL, **options)
    assert (found.prompt, found.generated.shape, found.sequences.shape) == (5, (3, 4), (3, 9))
    plain = one_pass(model, found)
    check_equals_one_pass(found, plain)
    plain.maps.values[1, 0, 2, -1, 3] += 1e-9
    with pytest.raises(AssertionError):
        check_equals_one_pass(found, plain)


def test_equals_what_transformers_returns():
    model = BY_NAME["llama"].build("lm", attention="eager")
    inputs = {"input_ids": batch((5, 5))["input_ids"]}  # at padding, its own eager attention is NaN in float64
    asked = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    theirs = model.generate(**inputs, max_new_tokens=4, pad_token_id=PAD, **asked)
    found = capture_generation(model, inputs, max_new_tokens=4, pad_token_id=PAD, **ALL)
    assert torch.equal(found.sequences, theirs.sequences)
    states = torch.cat([torch.stack(step) for step in theirs.hidden_states], dim=2)
    assert torch.equal(found.hidden.values, states)
    for step, maps in enumerate(theirs.attentions):
        for layer, one in enumerate(maps):
            mine = found.maps.values[layer, :, :, 4 + step : 5 + step] if step else found.maps.values[layer, :, :, :5]
            assert torch.equal(mine[..., : one.shape[3]], one)
            assert not mine[..., one.shape[3] :].any()


def test_encoder_decoders():
    model, inputs = bart().double(), {name: x for name, x in texts()[0].items() if name != "labels"}
    found = capture_generation(model, inputs, max_new_tokens=5, **ALL)
    assert (found.prompt, len(found.generated)) == (1, 2)
    decoder = {"decoder_input_ids": found.sequences[:, :-1]}
    decoder["decoder_attention_mask"] = found.hidden.masks["decoder"].long()
    check_equals_one_pass(found, capture(model, {**inputs, **decoder}, **ALL))
    some = capture_generation(model, inputs, max_new_tokens=5, **ALL, layers=["cross.1", "decoder.0"])
    assert torch.equal(some.maps.stacks["cross"], found.maps.stacks["cross"][1:])
    assert torch.equal(some.hidden.stacks["decoder"], found.hidden.stacks["decoder"][:1])


def test_padding_is_on_either_side_or_nowhere():
    model = BY_NAME["gpt2"].build("lm")
    left, right = (capture_generation(model, prompts(side), max_new_tokens=3, **ALL) for side in ("left", "right"))
    assert torch.equal(left.sequences, right.sequences)
    assert left.maps == right.maps
    for row, length in enumerate((5, 3, 4)):
        one = {"input_ids": prompts("right")["input_ids"][row : row + 1, :length]}
        alone = capture_generation(model, one, max_new_tokens=3, **ALL)
        assert torch.equal(alone.generated[0], left.generated[row, : alone.generated.shape[1]])
        for kind in ALL:
            mine = getattr(left, kind)
            keys = mine.mask[row]
            values = (
                mine.values[:, row].movedim(2, 1)[:, keys][..., keys] if kind == "maps" else mine.values[:, row, keys]
            )
            other = getattr(alone, kind).values[:, 0]
            other = other.movedim(2, 1) if kind == "maps" else other
            torch.testing.assert_close(values, other, rtol=0, atol=1e-10)


def test_padding_that_is_moved_and_counts_there_is_told():
    """A recurrent layer runs over the padding before a text, and never over that behind it."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, lru_width=16,
        num_key_value_heads=1, attention_window_size=16, pad_token_id=PAD,
    )  # fmt: skip
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.4)
    with pytest.warns(UserWarning, match="padding before the text changes the hidden states of RecurrentGemma"):
        capture_generation(model, prompts("right"), max_new_tokens=2, hidden=True, eos_token_id=None)


def test_masks_end_with_the_text():
    model = BY_NAME["gpt2"].build("lm")
    free = capture_generation(model, prompts(), max_new_tokens=6, hidden=True, eos_token_id=None)
    end = int(free.generated[1, 1])
    found = capture_generation(model, prompts(), max_new_tokens=6, maps=True, eos_token_id=[end, 39], pad_token_id=PAD)
    for row, ids in enumerate(found.generated.tolist()):
        ends = [place for place, token in enumerate(ids) if token in (end, 39)]
        last = ends[0] if ends else len(ids)
        expected = [place <= last for place in range(len(ids))][: found.maps.mask.shape[1] - 5]
        assert found.maps.mask[row, 5:].tolist() == expected


def test_pruned_heads_gates_types_and_texts():
    model = BY_NAME["llama"].build("lm")
    prune_heads(model, {0: [0, 1]})
    gates = torch.ones(2, 4)
    gates[1, 2] = 0
    with gated(model, gates):
        found = capture_generation(model, prompts(), max_new_tokens=3, **ALL, dtype=torch.float32, device="cpu")
        plain = one_pass(model, found)
    assert found.heads.values.dtype == torch.float32
    assert found.maps.values[0, :, :2].isnan().all()
    torch.testing.assert_close(
        real_rows(found, "maps", "decoder"), real_rows(plain, "maps", "decoder").float(), equal_nan=True
    )
    tokenizer = wordpiece_tokenizer()
    config = transformers.LlamaConfig(**LLAMA | WIDE | {"vocab_size": len(tokenizer)})
    writer = transformers.LlamaForCausalLM(config).eval()
    spoken = capture_generation(writer, "the cat", tokenizer=tokenizer, max_new_tokens=3, maps=True)
    assert len(spoken.maps.tokens[0]) == spoken.sequences.shape[1] - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is asked for"),
        ({"maps": True, "num_beams": 2}, "num_beams=2: .*Pass num_beams=1"),
        ({"maps": True, "num_return_sequences": 2, "do_sample": True}, "Pass num_return_sequences=1"),
        ({"maps": True, "max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"maps": True, "max_new_tokens": 40}, "5 tokens and 40 are to be generated, but the model takes 32"),
        ({"maps": True, "colour": "red"}, "generate does not take these arguments.*colour='red'"),
        ({"maps": True, "layers": [2]}, "layer 2 is out of range"),
    ],
)
def test_arguments_that_cannot_be_used(options, words):
    with pytest.raises(DataError, match=words):
        capture_generation(BY_NAME["llama"].build("lm"), prompts(), **options)


def test_models_and_inputs_that_do_not_generate():
    with pytest.raises(DataError, match="does not generate"):
        capture_generation(BY_NAME["bert"].build(), prompts(), maps=True)
    model = BY_NAME["gpt2"].build("lm")
    with pytest.raises(DataError, match="generation starts from input_ids"):
        capture_generation(model, {"inputs_embeds": torch.randn(1, 3, 16).double()}, maps=True)


@pytest.mark.parametrize("kind", ["Electra", "BertGeneration"])
def test_an_encoder_that_writes_a_text_has_no_steps_of_one_pass(kind):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, **WIDE}
    name = {"Electra": "ElectraForCausalLM", "BertGeneration": "BertGenerationDecoder"}[kind]
    more = {"embedding_size": 8} if kind == "Electra" else {}
    model, decoder = (
        getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes, **more, is_decoder=decodes))
        for decodes in (False, True)
    )
    prompt = {"input_ids": torch.tensor([[5, 6, 7]])}
    with pytest.raises(DataError, match=f"{name} lets tokens see later ones, since is_decoder is False"):
        capture_generation(model.eval(), prompt, max_new_tokens=3, hidden=True)
    found = capture_generation(decoder.eval(), prompt, max_new_tokens=3, hidden=True, eos_token_id=None)
    assert found.hidden.values.shape == (3, 1, 5, 16)
