"""Each example's loss is what transformers returns for a batch of it alone."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers as t

from bertology import head_ablation, head_importance, score
from bertology.anatomy.names import ENCODER_LM_CLASSES
from bertology.data.batches import without_labels
from bertology.data.losses import example_losses, find_loss, is_causal
from bertology.errors import LossError
from helpers.zoo import BY_NAME, PAD, V4, VOCAB, batch, each_alone

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}


def losses(model, inputs):
    with torch.no_grad():
        outputs = model(**without_labels(model, inputs))
    return example_losses(find_loss(model), outputs, inputs)


def check(model, inputs, alone=None):
    found = losses(model, inputs)
    with torch.no_grad():
        expected = torch.stack([model(**one).loss for one in alone or each_alone(inputs)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)
    assert found.shape == (len(expected),)
    assert expected.std() > 0
    return found


def bert(head, **config):
    torch.manual_seed(0)
    settings = BY_NAME["bert"].config()
    for name, value in config.items():
        setattr(settings, name, value)
    return getattr(t, f"BertFor{head}")(settings).double().eval()


def test_sequence_classification(family):
    check(family.build(), batch())


def test_regression():
    model = bert("SequenceClassification", num_labels=1)
    check(model, {**batch(), "labels": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)})


def test_regression_of_several_numbers():
    model = bert("SequenceClassification", num_labels=3, problem_type="regression")
    check(model, {**batch(), "labels": torch.randn(3, 3, dtype=torch.float64)})


def test_several_labels():
    model = bert("SequenceClassification", num_labels=4)
    inputs = {**batch(), "labels": torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.float64)}
    found = losses(model, inputs)
    assert model.config.problem_type is None
    check(model, inputs)
    torch.testing.assert_close(losses(model, inputs), found)


def token_labels(inputs):
    labels = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"] % 3, -100)
    labels[:, 1] = -100
    return {**inputs, "labels": labels}


def test_token_classification():
    check(bert("TokenClassification", num_labels=3), token_labels(batch()))


def test_labels_on_padding_do_not_count():
    model, inputs = bert("TokenClassification", num_labels=3), token_labels(batch())
    careless = {**inputs, "labels": torch.where(inputs["attention_mask"] > 0, inputs["labels"], 1)}
    torch.testing.assert_close(losses(model, careless), losses(model, inputs))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_masked_lm(name):
    check(BY_NAME[name].build("lm"), token_labels(batch()))


@pytest.mark.parametrize("name", ["gpt", "gpt2", "llama"])
def test_causal_lm(name):
    model, inputs = BY_NAME[name].build("lm"), batch()
    assert is_causal(model)
    # Padding has labels here, as in many scripts: it is left out all the same.
    check(model, {**inputs, "labels": inputs["input_ids"]})


def test_question_answering():
    inputs = {
        **batch(labels=False),
        "start_positions": torch.tensor([1, 0, 2]),
        "end_positions": torch.tensor([6, 3, 2]),
    }
    check(bert("QuestionAnswering"), inputs)


def test_multiple_choice():
    ids = torch.randint(3, VOCAB, (3, 4, 5))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([3, 0, 1])}
    alone = [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(3)]
    check(bert("MultipleChoice"), inputs, alone)


@pytest.mark.parametrize("name", ["T5", "Bart", "Marian"])
def test_sequence_to_sequence(name):
    torch.manual_seed(0)
    bart = {
        "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
    }  # fmt: skip
    config = {
        "T5": lambda: t.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
                                 decoder_start_token_id=PAD),
        "Bart": lambda: t.BartConfig(**bart),
        "Marian": lambda: t.MarianConfig(**bart, pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=1),
    }[name]()  # fmt: skip
    kind = t.MarianMTModel if name == "Marian" else getattr(t, f"{name}ForConditionalGeneration")
    model = kind(config).double().eval()
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(), "labels": labels}
    alone = [{**one, "labels": labels[i : i + 1]} for i, one in enumerate(each_alone(batch(labels=False)))]
    check(model, inputs, alone)


def test_a_decoder_does_not_look_ahead_where_it_would_with_a_cache():
    """FSMT masks the tokens to come only where it keeps no cache, as it does when it is given labels."""
    torch.manual_seed(0)
    config = t.FSMTConfig(
        langs=["en", "de"], src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    model = t.FSMTForConditionalGeneration(config).eval()  # float32: its mask is too large for float64
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[2, 4, 5, 6], [2, 7, 1, 3], [2, 8, 9, 1]])}
    inputs["labels"] = inputs["decoder_input_ids"].roll(-1, 1)
    with torch.no_grad():
        own = model(**inputs).loss.item()
    found = head_ablation(model, inputs, metric="inverse_loss")
    assert score(model, inputs, metric="inverse_loss").value == pytest.approx(1 / own, rel=1e-5)
    assert found.base_loss == pytest.approx(own, rel=1e-5)
    if V4:
        return  # transformers 4 does not run it with a cache at all
    with torch.no_grad():
        ahead = model(**without_labels(model, inputs) | {"use_cache": True})
    looked = torch.nn.functional.cross_entropy(ahead.logits.flatten(0, 1), inputs["labels"].flatten()).item()
    assert abs(looked - own) > 1e-3


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # transformers' own, where it computes this loss
def test_an_encoder_decoder_is_not_taken_for_the_causal_lm_inside_it():
    torch.manual_seed(0)
    parts = [t.BertConfig(**BY_NAME["bert"].config().to_dict()) for _ in range(2)]
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.decoder_start_token_id, config.pad_token_id = 1, PAD
    model = t.EncoderDecoderModel(config).double().eval()
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(), "labels": labels}
    # Alone, an example has no padding for the decoder to attend to.
    lengths = (labels != -100).sum(1)
    alone = [
        {**one, "labels": labels[i : i + 1, : lengths[i]]} for i, one in enumerate(each_alone(batch(labels=False)))
    ]
    assert not is_causal(model)
    check(model, inputs, alone)


def test_half_precision_losses_are_computed_in_float32():
    model = BY_NAME["bert"].build().bfloat16()
    assert losses(model, batch()).dtype == torch.float32


def test_wrappers_do_not_hide_the_task():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    assert find_loss(Wrapper(BY_NAME["bert"].build()))


@pytest.mark.parametrize(
    ("head", "inputs", "message"),
    [
        ("SequenceClassification", batch(labels=False), "BertForSequenceClassification needs labels in every batch, got input_ids"),
        ("QuestionAnswering", batch(), "needs start_positions and end_positions in every batch"),
        ("SequenceClassification", {**batch(), "labels": torch.tensor([0, 1, 5])}, r"labels must be from 0 to 1, or -100 to be ignored, got 5"),
        ("SequenceClassification", {**batch(), "labels": torch.tensor([0, 1])}, r"one class per example, \[batch\] = \[3\]"),
        ("SequenceClassification", {**batch(), "labels": torch.tensor([0, 1, -100])}, r"one class per example.*-100"),
        ("SequenceClassification", {**batch(), "labels": torch.ones(3)}, r"labels must be \[batch, label\] = \[3, 2\], got \[3\]"),
        ("SequenceClassification", {**batch(), "labels": torch.rand(3)}, r"got \[3\]: labels of float32 say for each of the 2 classes .* pass whole numbers, labels.long\(\)"),
        ("TokenClassification", {**batch(), "labels": torch.full((3, 7), 0.5)}, "labels must be whole numbers, the numbers of classes, got 0.5"),
        ("MaskedLM", {**batch(), "labels": torch.full((3, 7), 2.25)}, "labels must be whole numbers, .* got 2.25"),
        ("TokenClassification", batch(labels=False), r"pass batches with 'labels', or texts with their labels, such as \["),
        ("TokenClassification", {**batch(), "labels": torch.full((3, 7), -100)}, r"example\(s\) \[0, 1, 2\] of the batch have no labelled token"),
        ("QuestionAnswering", {**batch(), "start_positions": torch.tensor([0, 5, 0]), "end_positions": torch.tensor([0, 0, 0])},
         r"losses must be finite, got inf for example\(s\) \[1\] of a batch of 3"),
        ("QuestionAnswering", {**batch(), "start_positions": torch.tensor([0, 9, 0]), "end_positions": torch.tensor([0, 0, 0])},
         r"labels must be from 0 to 6"),
    ],
)  # fmt: skip
def test_errors(head, inputs, message):
    with pytest.raises(LossError, match=message):
        losses(bert(head), inputs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_labels": 3, "problem_type": "regression"}, "problem_type .* is 'regression', which wants a number for each label"),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, "problem_type .* is 'multi_label_classification', which wants a number"),
        ({"num_labels": 1}, "a model with one output predicts one number for each text"),
    ],
)  # fmt: skip
def test_labels_of_another_task(config, message):
    with pytest.raises(LossError, match=rf"labels must be \[batch, label\] = .*, got \[2\]: {message}"):
        losses(bert("SequenceClassification", **config), {**batch(), "labels": torch.rand(2)})


def test_labels_under_another_name():
    inputs = {**batch(labels=False), "label": torch.tensor([0, 1, 0])}
    with pytest.raises(
        LossError, match=r"needs labels in every batch, got input_ids, .*label: rename 'label' to 'labels'"
    ):
        find_loss(bert("SequenceClassification"))(None, inputs)


def test_whole_numbers_as_floats_are_classes():
    model, labels = bert("TokenClassification"), torch.randint(0, 2, (3, 7))
    for wide in (labels.float(), labels.double()):
        torch.testing.assert_close(
            losses(model, {**batch(), "labels": wide}), losses(model, {**batch(), "labels": labels})
        )


def test_classes_that_must_be_told_to_be_decoders_are_known():
    """They are those of which transformers' own code says so."""
    found = set()
    for file in Path(t.__file__).parent.glob("models/*/modeling_*.py"):
        for part in re.split(r"^class ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if "as a standalone, add `is_decoder=True.`" in part:
                found.add(re.match(r"\w+", part)[0])
    found = {name for name in found if not name.startswith("TF")}
    assert len(found) > 10
    assert [name for name in found if not re.fullmatch(ENCODER_LM_CLASSES, name)] == []


@pytest.mark.parametrize(
    "name", ["BertLMHeadModel", "CamembertForCausalLM", "RemBertForCausalLM", "BertGenerationDecoder"]
)
def test_a_decoder_that_sees_what_it_predicts(name):
    """The warning comes where a later token changes an earlier prediction, and nowhere else."""
    kind, inputs = getattr(t, name), batch()
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for decodes in (False, True):
        model = kind(kind.config_class(**SMALL, pad_token_id=PAD, is_decoder=decodes)).eval()
        with torch.no_grad():
            first, other = (model(torch.tensor([[5, 6, last]])).logits[0, 0] for last in (7, 8))
        sees = not torch.equal(first, other)
        assert sees is not decodes
        for measure in (head_importance, lambda *given: score(*given, metric="accuracy")):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                measure(model, inputs)
            assert any("sees the tokens that it predicts" in str(one.message) for one in told) is sees


def test_other_decoders_are_not_warned_of(recwarn):
    for name in ("gpt2", "llama"):
        find_loss(BY_NAME[name].build("lm"))
    assert not recwarn.list


def test_names_that_mislead():
    class LlavaForConditionalGeneration(type(BY_NAME["gpt2"].build("lm"))):
        pass

    decoder = BY_NAME["gpt2"].build("lm")
    decoder.__class__ = LlavaForConditionalGeneration
    inputs = batch()
    inputs["labels"] = inputs["input_ids"]
    check(decoder, inputs)
    assert is_causal(decoder)
    for name in ("XLNetLMHeadModel", "XLMWithLMHeadModel"):
        with pytest.raises(LossError, match=f"no loss is known for {name}"):
            find_loss(type(name, (torch.nn.Module,), {})())


def test_hint_for_causal_lms():
    with pytest.raises(LossError, match="for a causal LM pass labels=input_ids"):
        losses(BY_NAME["gpt2"].build("lm"), batch(labels=False))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (t.BertForSequenceClassification, t.BertConfig(num_labels=3, **SMALL)),
        (t.GPT2LMHeadModel, t.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=4)),
        (t.BartForCausalLM, t.BartConfig(vocab_size=40, d_model=16, decoder_layers=1, decoder_attention_heads=4)),
        (t.XLNetForQuestionAnswering, t.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=4, d_inner=24)),
    ],
)
def test_a_class_derived_from_one_of_transformers_has_its_loss_or_an_error(kind, config):
    own = type("MyModel", (kind,), {})
    torch.manual_seed(0)
    model = own(config).eval()
    ids = torch.randint(5, 40, (2, 6))
    inputs = {"input_ids": ids, "labels": torch.tensor([1, 2]) if "Classification" in kind.__name__ else ids}
    if "Question" in kind.__name__:
        inputs = {"input_ids": ids, "start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([2, 3])}
        with pytest.raises(LossError):
            score(model, inputs, metric="inverse_loss")
        return
    with torch.no_grad():
        alone = [model(**{name: x[i : i + 1] for name, x in inputs.items()}).loss for i in range(2)]
    torch.testing.assert_close(losses(model, inputs), torch.stack(alone), check_dtype=False)
    head_ablation(model, inputs, metric="accuracy")  # compares the loss with the model's own


def test_a_derived_class_with_a_loss_of_its_own_is_refused():
    class Doubled(t.BertForSequenceClassification):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            if outputs.loss is not None:
                outputs.loss = 2 * outputs.loss
            return outputs

    model = Doubled(t.BertConfig(num_labels=3, **SMALL)).eval()
    with pytest.raises(LossError, match="Doubled has a loss that is not known"):
        head_ablation(model, {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}, metric="accuracy")


@pytest.mark.parametrize("width", [1, 6, 9])
@pytest.mark.parametrize("measure", [head_importance, lambda m, x: score(m, x, metric="accuracy")])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_labels_of_another_number_than_the_tokens_are_refused(name, measure, width):
    """Fewer ended in an error of torch, and one label was taken for all tokens."""
    inputs = {**batch(labels=False), "labels": torch.ones(3, width, dtype=torch.long)}
    for model in (BY_NAME[name].build("lm"), *([bert("TokenClassification", num_labels=3)] if name == "bert" else [])):
        with pytest.raises(LossError, match=r"\[3, 7.*got \[3, "):
            measure(model, inputs)
