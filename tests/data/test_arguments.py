"""What a model is called with, and what is read of its outputs, for models and wrappers of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn
from torch.nn import functional as F

import bertology as b
from bertology.errors import BertologyError, DataError, LossError
from helpers.zoo import BY_NAME, VOCAB, batch

EQUAL = {"rtol": 1e-9, "atol": 1e-12}


def each_cross_entropy(logits: Any, given: Any) -> Tensor:
    return F.cross_entropy(logits, given["labels"], reduction="none")


class Classifier(nn.Module):
    """A custom classifier on a model without a head; its forward pass takes no labels."""

    def __init__(self, name: str = "roberta") -> None:
        super().__init__()
        self.inner = BY_NAME[name].build()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


class Around(nn.Module):
    """Passes on whatever it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_a_loss_of_ones_own_and_a_forward_pass_without_labels(name):
    model = Classifier(name)
    wanted = b.head_importance(model.inner, batch()).scores
    for one in (model, Around(model)):
        torch.testing.assert_close(b.head_importance(one, batch(), loss=each_cross_entropy).scores, wanted, **EQUAL)
        found = b.head_ablation(one, batch(), metric="inverse_loss", loss=each_cross_entropy)
        torch.testing.assert_close(found.losses, b.head_ablation(model.inner, batch(), metric="inverse_loss").losses)
        gradients = b.head_outputs(one, batch(), loss=each_cross_entropy).gradients
        torch.testing.assert_close(gradients, b.head_outputs(model.inner, batch(), loss="auto").gradients, **EQUAL)


def test_what_only_the_loss_reads_is_not_passed_to_the_model():
    model, given = Classifier(), batch(labels=False) | {"targets": torch.tensor([1, 0, 1])}

    def loss(logits: Any, given: Any) -> Tensor:
        return F.cross_entropy(logits, given["targets"], reduction="none")

    wanted = b.head_importance(model.inner, given | {"labels": given["targets"]}, loss=loss_of_logits(loss)).scores
    torch.testing.assert_close(b.head_importance(model, given, loss=loss).scores, wanted, **EQUAL)
    for measure in (b.head_importance, b.head_outputs):
        with pytest.raises(
            DataError, match=r"Classifier takes no targts: it takes input_ids, attention_mask, and the loss"
        ):
            measure(model, given | {"targts": given["targets"]}, loss=loss)


def loss_of_logits(loss: Any) -> Any:
    return lambda outputs, given: loss(outputs.logits, given)


@pytest.mark.parametrize("measure", [b.attention_entropy, b.hidden_states])
def test_a_misspelt_argument_is_an_error(measure):
    given = batch(labels=False)
    with pytest.raises(DataError, match="the forward pass of Classifier takes no attention_maks: it takes input_ids"):
        measure(Classifier(), {"input_ids": given["input_ids"], "attention_maks": given["attention_mask"]})


class Bare(Classifier):
    """Returns its logits in other ways."""

    def __init__(self, how: str) -> None:
        super().__init__("bert")
        self.how = how

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = super().forward(input_ids, attention_mask)
        own = () if labels is None else (F.cross_entropy(logits, labels),)
        named = dict(zip(("loss", "logits")[-len(own) - 1 :], (*own, logits), strict=True))
        return {"tensor": logits, "tuple": (*own, logits), "list": [*own, logits], "dict": named}[self.how]


@pytest.mark.parametrize("how", ["tensor", "tuple", "list", "dict"])
def test_logits_without_a_name(how):
    model = Bare(how)
    wanted = b.head_importance(model.inner, batch()).scores
    torch.testing.assert_close(b.head_importance(model, batch()).scores, wanted, **EQUAL)
    for metric in ("accuracy", "inverse_loss"):
        value = b.score(model.inner, batch(), metric=metric).value
        assert b.score(model, batch(), metric=metric).value == pytest.approx(value, rel=1e-9)
    assert b.head_ablation(model, batch(), metric="accuracy").base == b.score(model, batch(), metric="accuracy").value


@pytest.mark.parametrize("how", ["argument", "config", "torchscript"])
def test_models_that_return_tuples(how):
    inner = BY_NAME["distilbert"].build()
    given, wanted = batch(), b.head_importance(inner, batch()).scores
    if how == "argument":
        given["return_dict"] = False
    elif how == "config":
        inner.config.return_dict = False
    else:
        inner.config.torchscript = True
    torch.testing.assert_close(b.head_importance(inner, given).scores, wanted, **EQUAL)
    assert b.score(inner, given, metric="accuracy").examples == 3


def test_spans_without_names():
    model = t.BertForQuestionAnswering(BY_NAME["bert"].config()).eval()
    given = batch(labels=False) | {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([6, 3, 2])}
    wanted = b.head_importance(model, given).scores
    torch.testing.assert_close(b.head_importance(model, given | {"return_dict": False}).scores, wanted)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_few_bits(dtype):
    model, given = BY_NAME["electra"].build(), batch()
    wanted, short = b.head_importance(model, given).scores, given | {"labels": given["labels"].to(dtype)}
    torch.testing.assert_close(b.head_importance(model, short).scores, wanted, **EQUAL)
    assert b.score(model, short, metric="accuracy").value == b.score(model, given, metric="accuracy").value
    own = b.head_importance(model, short, loss=lambda out, x: each_cross_entropy(out.logits, x)).scores
    torch.testing.assert_close(own, wanted, **EQUAL)


SIZES = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", ["M2M100", "Blenderbot", "BlenderbotSmall"])
def test_a_decoder_whose_inputs_only_the_model_can_make(name):
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = getattr(t, f"{name}Config")(**SIZES, **special)
    model = getattr(t, f"{name}ForConditionalGeneration")(config).double().eval()
    labels = torch.tensor([[4, 5, 6, 2], [7, 2, -100, -100], [8, 9, 2, -100]])
    given = {**batch(labels=False), "labels": labels}
    with torch.no_grad():
        alone = [
            model(input_ids=given["input_ids"][i : i + 1, :n], labels=labels[i : i + 1, :m]).loss.item()
            for i, (n, m) in enumerate([(7, 4), (4, 2), (5, 3)])
        ]
    found = b.head_ablation(model, given, metric="inverse_loss")
    assert found.base_losses.tolist() == pytest.approx(alone, rel=1e-6)
    assert set(b.attention_maps(model, given).stacks) == {"encoder", "decoder", "cross"}
    assert b.attention_entropy(model, given).queries.tolist() == [16, 9, 9]


@pytest.mark.parametrize("kind", ["T5GemmaForTokenClassification", "BartForSequenceClassification"])
def test_labels_of_an_encoder_decoder_that_are_no_target(kind):
    """Labels of classes are not what the decoder reads."""
    from bertology.data.batches import without_labels

    if not hasattr(t, kind):
        pytest.skip("this transformers does not have it")
    model = object.__new__(getattr(t, kind))
    nn.Module.__init__(model)
    model.config = t.BartConfig(**SIZES)
    assert set(without_labels(model, batch())) == {"input_ids", "attention_mask"}


def mixture(router: bool) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    return t.OlmoeForCausalLM(t.OlmoeConfig(**sizes, output_router_logits=router, router_aux_loss_coef=0.5)).eval()


def test_the_loss_of_a_router_is_named():
    given = batch(labels=False)
    given["labels"] = given["input_ids"].clone()
    assert b.score(mixture(False), given, metric="inverse_loss").value > 0
    for measure in (b.head_importance, lambda m, x: b.score(m, x, metric="inverse_loss")):
        with pytest.raises(
            LossError, match=r"OlmoeForCausalLM has a loss that is not known.*output_router_logits = False"
        ):
            measure(mixture(True), given)


class SmoothedForSequenceClassification(t.BertForSequenceClassification):
    """Computes another loss than its name says."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, **more: Any) -> Any:
        outputs = super().forward(input_ids, attention_mask, **more)
        if labels is not None:
            outputs.loss = F.cross_entropy(outputs.logits, labels, label_smoothing=0.5)
        return outputs


def test_a_class_whose_loss_is_not_that_of_its_name():
    model = BY_NAME["bert"].build()
    model.__class__ = SmoothedForSequenceClassification
    with pytest.raises(
        LossError,
        match=r"SmoothedForSequenceClassification has a loss that is not known: for one example without padding it",
    ):
        b.head_importance(model, batch())
    with pytest.raises(LossError, match="pass loss=f, where f"):
        b.head_outputs(model, batch(), loss="auto")

    def smoothed(outputs: Any, given: Any) -> Tensor:
        return F.cross_entropy(outputs.logits, given["labels"], reduction="none", label_smoothing=0.5)

    assert b.head_importance(model, batch(), loss=smoothed).examples == 3


class Prompted(nn.Module):
    """Puts vectors of a prompt before a text, as prompt tuning and p-tuning do."""

    def __init__(self, inner: Any, *, own_loss: bool = True) -> None:
        super().__init__()
        self.inner, self.prompt, self.own_loss = inner, nn.Parameter(torch.randn(2, 16).double()), own_loss

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        words = self.inner.get_input_embeddings()(input_ids)
        prompt = self.prompt.expand(len(words), -1, -1)
        if labels is not None and self.own_loss:
            labels = torch.cat([torch.full((len(words), 2), -100), labels], dim=1)
        outputs = self.inner(inputs_embeds=torch.cat([prompt, words], 1), labels=labels if self.own_loss else None)
        return outputs if self.own_loss else outputs.logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_before_the_tokens(name):
    model, text = Prompted(BY_NAME[name].build("lm")), batch((6,), labels=False)["input_ids"]
    with torch.no_grad():
        wanted = model(text, labels=text).loss.item()
    given = {"input_ids": text, "labels": text}
    assert 1 / b.score(model, given, metric="inverse_loss").value == pytest.approx(wanted, rel=1e-6)
    assert b.head_importance(model, given).scores.shape == (2, 4)
    model.own_loss = False
    with pytest.raises(
        LossError, match=r"logits must have the shape \[1, 6, class\], as the labels say, got \[1, 8, 40\]"
    ):
        b.score(model, given, metric="inverse_loss")


# It takes more answers than the shortest text has tokens, so that this text does not run alone.
@pytest.mark.filterwarnings("ignore:it is not known whether padding changes:UserWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("XLNetForQuestionAnswering", "the model must return start_logits, got"),
        ("BertForPreTraining", "no loss is known for BertForPreTraining: wanted a model of transformers with a head"),
    ],
)
def test_losses_that_are_not_known_say_so_in_words(kind, message):
    torch.manual_seed(0)
    config = t.XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=1, n_head=4, d_inner=16)
    model = getattr(t, kind)(config if kind.startswith("XLNet") else BY_NAME["bert"].config()).eval()
    given = batch() | {"start_positions": torch.tensor([1, 1, 1]), "end_positions": torch.tensor([2, 2, 2])}
    del given["labels"]
    with pytest.raises(LossError, match=message) as told:
        b.head_importance(model, given)
    assert "(?" not in str(told.value)


def test_weights_that_are_nan():
    for name in ("bert", "gpt2"):
        model = BY_NAME[name].build()
        weights = next(b.dissect(model).sites[1].query.parameters())
        with torch.no_grad():
            weights[0, 0] = float("nan")
        for measure in (
            lambda m, x: b.score(m, x, metric="accuracy"),
            lambda m, x: b.pruning_curve(m, x, metric="accuracy", by="magnitude"),
            b.attention_entropy,
            b.head_means,
        ):
            with pytest.raises(BertologyError, match="NaN"):
                measure(model, batch())


def test_logits_that_are_nan():
    model = BY_NAME["bert"].build()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    for metric in ("accuracy", "f1", "pearson", lambda logits, labels: 1.0):
        with pytest.raises(BertologyError, match="the logits hold NaN|predict"):
            b.score(model, batch(), metric=metric)


def test_a_replaced_forward_pass_takes_what_the_class_takes():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = t.BartForConditionalGeneration(t.BartConfig(vocab_size=VOCAB, **sizes, **heads)).eval()
    own, ids = model.forward, torch.randint(5, VOCAB, (2, 6))
    given = {"input_ids": ids, "labels": ids, "decoder_attention_mask": torch.ones_like(ids)}
    wanted = b.head_importance(model, given).scores
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    assert torch.equal(b.head_importance(model, given).scores, wanted)
    with pytest.raises(DataError, match="takes no atention_mask"):
        b.head_importance(model, given | {"atention_mask": torch.ones_like(ids)})
