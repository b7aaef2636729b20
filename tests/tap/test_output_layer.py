"""The output layer of a language model runs for the tokens that a loss reads, and only where that changes nothing."""

import pytest
import torch
import transformers as t

from bertology import accumulate, dissect, gated, head_ablation
from bertology.data import losses as losses_module
from bertology.errors import LossError
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import VariantAccumulator
from bertology.tap.output_layer import output_layer, products_noted
from helpers.ablation import check, several
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch


def left_out(model, batches, metric="inverse_loss", loss=None):
    """Whether the output layer was left out."""
    accumulator = VariantAccumulator(one_off, metric, loss)
    accumulate(model, batches, accumulator)
    return accumulator._branches.left_out.output_layer


def some_labelled(side="right"):
    """Batches in which a third of the labels is ignored."""
    made = several(side, "lm")
    for one in made:
        one["labels"][:, 1::3] = -100
    return made


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding (before|changes):UserWarning")
def test_language_models(family):
    model = family.build("lm")
    check(model, some_labelled())
    assert left_out(model, some_labelled("left"))


@pytest.mark.parametrize(("name", "expected"), [("t5", True), ("bart", False)])
def test_encoder_decoders(name, expected):
    """BART adds a bias after its output layer."""
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(labels=False), "labels": labels}
    model = seq2seq(name)
    check(model, inputs)
    assert left_out(model, inputs) is expected


def test_whole_logits_are_there_for_a_metric_and_for_a_loss_of_ones_own():
    def first(outputs, inputs):
        return outputs.logits[:, 0].double().logsumexp(-1)

    model = BY_NAME["gpt2"].build("lm")
    check(model, some_labelled(), metric="accuracy")
    check(model, some_labelled(), loss=first)
    assert not left_out(model, some_labelled(), metric="accuracy")
    assert not left_out(model, some_labelled(), loss=first)


def test_classifiers_have_no_output_layer(family):
    assert not left_out(family.build(), several())


@pytest.mark.parametrize("tokens", [1, 5])
def test_how_many_tokens_at_once_changes_nothing(monkeypatch, tokens):
    monkeypatch.setattr(losses_module, "TOKENS_AT_ONCE_ON_CPU", tokens)
    model = BY_NAME["llama"].build("lm")
    check(model, some_labelled())
    assert left_out(model, some_labelled())


def gemma(cap):
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config = t.Gemma2Config(
        vocab_size=90, hidden_size=16, intermediate_size=20, final_logit_softcapping=cap, pad_token_id=0, **small
    )
    return t.Gemma2ForCausalLM(config).double().eval()


def test_logits_that_are_capped_after_the_layer():
    assert left_out(gemma(None), some_labelled())
    model = gemma(0.05)
    check(model, some_labelled())
    assert not left_out(model, some_labelled())


def test_hooks_that_edit_logits_by_their_position():
    """Every other position has other logits: the layer alone does not know which it is."""
    model = BY_NAME["gpt2"].build("lm")
    model.lm_head.register_forward_hook(
        lambda m, args, x: x * (1 + torch.arange(x.shape[-2], device=x.device)[:, None])
    )
    check(model, some_labelled())
    assert not left_out(model, some_labelled())


def test_hooks_that_edit_states_before_the_layer():
    """Once is right; twice, as the layer is called once without effect, would be wrong."""
    model = BY_NAME["gpt2"].build("lm")
    model.lm_head.register_forward_pre_hook(lambda m, args: (3 * args[0],))
    check(model, some_labelled())
    assert not left_out(model, some_labelled())


def test_gates_that_others_set():
    model = BY_NAME["bert"].build("lm")
    with gated(model, torch.tensor([[1, 0.5, 1, 1], [0.2, 1, 1, 0.7]])):
        check(model, some_labelled())


def test_a_layer_that_runs_twice_is_not_it():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch(labels=False)
    with torch.no_grad(), products_noted(dissect(model)) as noted:
        outputs = model(**inputs)
    assert output_layer(noted, outputs) is model.lm_head
    assert output_layer([*noted, *noted], outputs) is None
    assert output_layer(noted, {"last_hidden_state": outputs.logits}) is None
    assert not model.lm_head._forward_hooks


def test_examples_without_labelled_tokens_are_told():
    inputs = some_labelled()
    inputs[1]["labels"][1] = -100
    with pytest.raises(LossError, match="have no labelled token: .* a text of one token has none"):
        head_ablation(BY_NAME["gpt2"].build("lm"), inputs, metric="inverse_loss")
