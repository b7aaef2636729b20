"""What the task head makes of each layer."""

from dataclasses import replace

import pytest
import torch
import transformers

from bertology import Result, head_attribution, hidden_states, logit_lens
from bertology.errors import DataError, ShapeError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch
from oracles import lens as oracles

# oracle: the formulas with the weights of each family


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_lens_equals_its_formula(name):
    model, inputs = BY_NAME[name].build("lm"), batch(labels=False)
    targets = torch.full((3, 7), 9)
    found = logit_lens(model, inputs, targets=targets)
    states = hidden_states(model, inputs, tie_last_hidden_states=False).values
    final = oracles.lens(model, name, states)[-1].log_softmax(-1)
    for layer, logits in enumerate(oracles.lens(model, name, states)):
        p = logits.log_softmax(-1)
        assert torch.equal(found.best[layer], logits.argmax(-1))
        torch.testing.assert_close(found.probability[layer], p[..., 9].exp())
        assert torch.equal(found.rank[layer], (logits > logits[..., 9:10]).sum(-1))
        torch.testing.assert_close(found.divergence[layer], (final.exp() * (final - p)).sum(-1).clamp_min(0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.probability[0], p[..., 9].exp())


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_the_last_layer_is_the_models_own_answer(family, kind):
    model, inputs = family.build(kind), batch(labels=False)
    found = logit_lens(model, inputs)
    logits = model(**inputs).logits
    assert torch.equal(found.best[-1].squeeze(-1) if kind == "classifier" else found.best[-1], logits.argmax(-1))
    assert found.labels == ("0", "1", "2")
    assert not found.rank[-1].any()
    torch.testing.assert_close(found.divergence[-1], torch.zeros_like(found.divergence[-1]))
    assert found.best.shape == (3, 3, 1 if kind == "classifier" else 7)


def test_encoder_decoders_are_read_in_the_decoder():
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 6]] * 3)}
    found = logit_lens(model, inputs)
    assert torch.equal(found.best[-1], model(**inputs).logits.argmax(-1))
    added = head_attribution(model, inputs)
    torch.testing.assert_close(added.together, added.values.sum((0, 2)), atol=1e-4, rtol=0)
    rows = [row for row, label in enumerate(added.labels) if label.startswith("encoder")]
    assert not added.values[rows].any()  # an encoder has no path but the cross attention


def test_errors_say_what_to_do():
    inputs = batch((5,), labels=False)
    with pytest.raises(DataError, match="take a model with a task head, such as AutoModelForCausalLM"):
        logit_lens(BY_NAME["bert"].build().bert, inputs)
    with pytest.raises(ShapeError, match=r"targets must be whole numbers \[1, 5\], got \[1, 4\]"):
        logit_lens(BY_NAME["bert"].build("lm"), inputs, targets=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(DataError, match="targets must be from 0 to 39, got 40 to 40"):
        logit_lens(BY_NAME["bert"].build("lm"), inputs, targets=torch.full((1, 5), 40))
    with pytest.raises(ShapeError, match=r"a tensor \[batch\], got \[1, 2\]"):
        head_attribution(BY_NAME["bert"].build(), inputs, of=lambda outputs, batch: outputs.logits)
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=4, d_inner=24)
    with pytest.raises(UnknownAnatomy):
        head_attribution(transformers.XLNetLMHeadModel(config).eval(), inputs)


def test_a_block_with_two_streams_is_refused():
    """Reformer's head reads both together; the state of a layer is one of them."""
    config = transformers.ReformerConfig(
        vocab_size=40, hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=32,
        attn_layers=["local", "local"], local_attn_chunk_length=4, axial_pos_embds=False, is_decoder=True,
    )  # fmt: skip
    model = transformers.ReformerModelWithLMHead(config).eval()
    with pytest.raises(UnknownAnatomy, match=r"cannot be read by a lens: .* one state \[batch, token, hidden\]"):
        logit_lens(model, batch((8,), labels=False))


def test_saved_and_drawn(tmp_path):
    model, inputs = BY_NAME["gpt2"].build("lm"), batch(labels=False)
    for found in (logit_lens(model, inputs), head_attribution(model, inputs)):
        found.save(tmp_path / "result")
        assert Result.load(tmp_path / "result") == found
        found.plot(path=tmp_path / "result.png")
        assert (tmp_path / "result.png").stat().st_size > 1000


@pytest.mark.parametrize("targets", [torch.tensor([True, False, True]), torch.tensor([1.0, 0, 1])])
def test_targets_are_whole_numbers(targets):
    with pytest.raises(ShapeError, match="targets must be whole numbers \\[3, 1\\], got \\[3\\] of (bool|float32)"):
        logit_lens(BY_NAME["bert"].build(), batch(labels=False), targets=targets)


def test_targets_may_be_narrow_numbers():
    model, inputs = BY_NAME["bert"].build(), batch(labels=False)
    narrow, wide = (
        logit_lens(model, inputs, targets=torch.tensor([1, 0, 1], dtype=kind)) for kind in (torch.int32, None)
    )
    torch.testing.assert_close(narrow.probability, wide.probability)


def test_printing_shows_the_best_answers():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((3, 6), labels=False)
    found = logit_lens(model, inputs)
    lines = str(found).splitlines()
    assert "best [layer, batch, token]: [3, 2, 6] int64" in lines
    assert not any(line.startswith("names:") for line in lines)
    at = lines.index("names [layer, token] of example 0 of 2:")
    assert (
        [line.split() for line in lines[at + 1 :]]
        == [
            ["0", "1", "2"],  # of the text alone, not of its padding
            *([str(layer), *map(str, found.best[layer, 0, :3].tolist())] for layer in range(3)),
        ]
    )
    names = (
        (("\n", " a", " " * 2), *found.names[0][1:]),
        (("x" * 99, "b", "c"), *found.names[1][1:]),
        *found.names[2:],
    )
    tokens = (("", "", "", " to", " be", "\t"), ())
    # The text begins at the first position, as the mask says.
    named = str(replace(found, names=names, tokens=(tokens[0][3:] + ("",) * 3, tokens[0])))
    assert [line.split() for line in named.splitlines()[-4:-1]] == [
        ["to", "be", "\\t"], ["0", "\\n", "a", "␣␣"], ["1", "x" * 15 + "…", "b", "c"],
    ]  # fmt: skip
    classes = logit_lens(BY_NAME["bert"].build("classifier"), inputs)
    assert "names [layer, batch]:\n" in str(classes)
    assert str(classes).splitlines()[-1].split() == ["2", *(text[0] for text in classes.names[-1])]
