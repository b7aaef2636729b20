import pytest
import torch
import transformers

from bertology import (
    EntropyAccumulator,
    GradientsAccumulator,
    ImportanceAccumulator,
    accumulate,
    attention_gradients,
    attention_maps,
    attention_relevance,
)
from bertology.errors import DataError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch, each_alone

# oracle: autograd, through the maps that eager attention of transformers returns.

CLASSES = {"low": list(range(3, 12)), "even": lambda batch: batch["input_ids"] % 2 == 0}


def by_transformers(family, inputs, kind="classifier"):
    """[layer, head, class] by a backward pass through the maps that eager attention hands out, each example alone."""
    model = family.build(kind, attention="eager")
    totals, pairs = 0, 0
    for one in each_alone(inputs):
        ids = one["input_ids"][0]
        outputs = model(**one, output_attentions=True)
        gradients = torch.autograd.grad(outputs.loss, outputs.attentions)
        member = torch.stack([(ids >= 3) & (ids < 12), ids % 2 == 0])
        member = torch.cat([member, ~member.any(0, keepdim=True)])
        for layer_pairs in [torch.stack([g[0].abs().sum(1) @ member.T.double() for g in gradients])]:
            totals = totals + layer_pairs
        pairs = pairs + member.sum(1) * len(ids)
    return totals / pairs


def check(found, expected):
    torch.testing.assert_close(found.values, expected, atol=1e-9, rtol=1e-6)


def test_equals_the_gradients_of_eager_maps(family):
    model, inputs = family.build(), batch((9, 4, 6))
    found = attention_gradients(model, inputs, tokens=CLASSES)
    expected = by_transformers(family, inputs)
    check(found, expected)
    check(attention_gradients(model, each_alone(inputs), tokens=CLASSES), expected)
    assert found.classes == ("low", "even", "other")
    expected[1, 2, 0] += 1e-3
    with pytest.raises(AssertionError):
        check(found, expected)


def test_is_what_a_small_change_of_a_weight_does_to_the_loss(monkeypatch):
    """Central differences: one attention weight of the model's own eager attention is nudged."""
    from transformers.models.bert import modeling_bert as module

    if not hasattr(module, "eager_attention_forward"):
        pytest.skip("BERT of transformers 4 has its attention in a module of its own")
    model, inputs = BY_NAME["bert"].build(attention="eager"), batch((4,))
    eager, nudge = module.eager_attention_forward, {}

    def nudged(attention, query, key, value, mask, **kwargs):
        output, weights = eager(attention, query, key, value, mask, **kwargs)
        if nudge.get("layer") is attention:
            i, j, head = nudge["place"]
            output = output.clone()
            output[0, i, head] += nudge["by"] * value[0, head, j]
        return output, weights

    monkeypatch.setattr(module, "eager_attention_forward", nudged)
    step, layers = 1e-5, [layer.attention.self for layer in model.bert.encoder.layer]
    expected = torch.zeros(2, 4, dtype=torch.float64)
    odd = [9, 17, 31]
    member = torch.isin(inputs["input_ids"][0], torch.tensor(odd))
    assert member.sum() == 3
    for row, attention in enumerate(layers):
        for head in range(4):
            for i in range(4):
                for j in member.nonzero().flatten().tolist():
                    losses = []
                    for by in (step, -step):
                        nudge.update(layer=attention, place=(i, j, head), by=by)
                        losses.append(model(**inputs).loss.item())
                    expected[row, head] += abs(losses[0] - losses[1]) / (2 * step)
    nudge.clear()
    found = attention_gradients(model, inputs, tokens={"odd": odd}).gradient_to("odd")
    torch.testing.assert_close(found, expected / (4 * member.sum()), atol=1e-8, rtol=1e-4)


def test_of_a_language_model(family):
    model, inputs = family.build("lm"), batch((9, 4, 6))
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    found = attention_gradients(model, inputs, tokens=CLASSES)
    assert found.values.min() >= 0
    assert found.pairs[0].sum() >= 9 * 9 + 4 * 4 + 6 * 6
    check(found, by_transformers(family, inputs, "lm"))


def test_with_other_measures_in_one_pass(family):
    model, inputs = family.build(), batch()
    found, importance, entropy = accumulate(
        model, inputs, GradientsAccumulator(CLASSES), ImportanceAccumulator(), EntropyAccumulator()
    )
    check(found, attention_gradients(model, inputs, tokens=CLASSES).values)
    assert importance.scores.isfinite().all()
    assert entropy.mean.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="wanted at least one token class"):
        attention_gradients(model, batch(), tokens={})
    with pytest.raises(DataError, match="no token class 'b': there are a, other"):
        attention_gradients(model, batch(), tokens={"a": [3]}).gradient_to("b")
    model.requires_grad_(False)
    with pytest.raises(UnknownAnatomy, match="no gradient reaches the attention of encoder.0: make a parameter before"):
        attention_gradients(model, batch(), tokens={"a": [3]})
    model.get_input_embeddings().requires_grad_()
    assert attention_gradients(model, batch(), tokens=CLASSES).values.isfinite().all()


@pytest.mark.filterwarnings("ignore")  # the model's own code warns of this and that
def test_queries_that_are_pooled_tokens_have_no_classes():
    torch.manual_seed(0)
    config = transformers.FunnelConfig(
        vocab_size=50, block_sizes=[1, 1], num_decoder_layers=1, d_model=16, n_head=4, d_head=4, d_inner=24,
        num_labels=2,
    )  # fmt: skip
    model, ids = transformers.FunnelForSequenceClassification(config).eval(), torch.randint(5, 40, (2, 7))
    found = attention_gradients(model, {"input_ids": ids, "labels": torch.tensor([0, 1])}, tokens={"low": range(20)})
    assert found.values[0].isfinite().all()
    assert found.values[1:].isnan().all()


@pytest.mark.parametrize("kind", ["XGLM", "Mvp"])
def test_maps_with_heads_in_the_axis_of_the_batch_have_gradients(kind):
    """Their softmax is of [batch * head, query, key], of which the map is a view."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "attention_dropout": 0.0, "max_position_embeddings": 32}
    if kind == "XGLM":
        config = transformers.XGLMConfig(**sizes, num_layers=2, attention_heads=4, ffn_dim=24)
        model = transformers.XGLMForCausalLM(config)
    else:
        of_stacks = {"layers": 2, "attention_heads": 4, "ffn_dim": 24}
        both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in of_stacks.items()}
        model = transformers.MvpForCausalLM(transformers.MvpConfig(**sizes, **both))
    model = model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.4)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]])}

    def last(outputs, batch):
        return outputs.logits[:, -1, 3]

    outputs = model(**inputs, output_attentions=True, use_cache=False)
    gradients = torch.autograd.grad(last(outputs, None).sum(), outputs.attentions)
    found = attention_gradients(model, inputs, tokens={"all": list(range(40))}, loss=last)
    expected = torch.stack([gradient[0].abs().sum((1, 2)) / 25 for gradient in gradients])
    assert expected.min() > 1e-6
    values = found.values[..., 0]
    values = values[~values.isnan().all(1)]  # without cross attention, which does not run
    torch.testing.assert_close(values, expected.double(), rtol=1e-3, atol=1e-6)
    rest = torch.eye(5)
    for x, gradient in zip(outputs.attentions, gradients, strict=True):
        rest = (torch.eye(5) + (x * gradient).clamp_min(0).mean(1)[0]) @ rest
    torch.testing.assert_close(attention_relevance(model, inputs, of=last).values[-1, 0], rest, rtol=1e-3, atol=1e-5)


def test_maps_that_are_laid_out_of_windows_have_no_gradients():
    config = transformers.LongformerConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        attention_window=[4, 4], max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    model = transformers.LongformerForMaskedLM(config).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}

    def first(outputs, batch):
        return outputs.logits[:, 0, 3]

    for measure in (
        lambda: attention_relevance(model, inputs, of=first),
        lambda: attention_gradients(model, inputs, tokens={"all": list(range(40))}, loss=first),
    ):
        with pytest.raises(UnknownAnatomy, match="over windows, and its map is laid out of them: no gradient"):
            measure()
    assert attention_maps(model, inputs).values.sum(-1).allclose(torch.ones(2, 1, 4, 4))
