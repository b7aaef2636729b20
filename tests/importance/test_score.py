import pytest
import torch

from bertology import score
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch, each_alone

# oracle: the logits of one batch, and metrics written out.


def test_accuracy_is_over_all_examples_whatever_the_batches():
    model, inputs = BY_NAME["bert"].build(), batch((7, 4, 5, 2, 6))
    with torch.no_grad():
        expected = (model(**inputs).logits.argmax(-1) == inputs["labels"]).double().mean().item()
    for batches in (inputs, each_alone(inputs), iter(each_alone(inputs))):
        found = score(model, batches, metric="accuracy")
        assert (found.value, found.examples, found.metric) == (expected, 5, "accuracy")


def test_a_function_sees_all_logits_and_labels():
    model, seen = BY_NAME["bert"].build(), {}

    def metric(logits, labels):
        seen.update(logits=logits, labels=labels)
        return 0.25

    found = score(model, [batch((3, 4)), batch((5,))], metric=metric)
    assert (found.value, found.metric) == (0.25, "metric")
    assert seen["logits"].shape == (3, 2)
    assert seen["labels"].tolist() == [0, 1, 0]


def test_token_labels_leave_padding_out():
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(BY_NAME["bert"].config()).double().eval()
    inputs = {**batch(), "labels": batch()["input_ids"] % 2}
    seen = []
    score(model, inputs, metric=lambda logits, labels: seen.append(labels) or 0.0)
    assert len(seen[0]) == 16


def test_causal_labels_are_shifted():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch()
    inputs["labels"] = inputs["input_ids"]
    right = total = 0
    for one in each_alone(inputs):
        with torch.no_grad():
            guess = model(**one).logits.argmax(-1)[0]
        right += (guess[:-1] == one["labels"][0, 1:]).sum().item()
        total += len(guess) - 1
    assert score(model, inputs, metric="accuracy").value == pytest.approx(right / total)


def test_inverse_loss():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch()
    inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        mean = sum(model(**one).loss.item() for one in each_alone(inputs)) / 3
    assert score(model, inputs, metric="inverse_loss").value == pytest.approx(1 / mean)
    own = score(model, inputs, metric="inverse_loss", loss=lambda outputs, b: outputs.logits.new_full((3,), 0.5))
    assert own.value == 2


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="a score needs labels in every batch"):
        score(model, batch(labels=False), metric="accuracy")
    with pytest.raises(DataError, match="a score needs logits from the model, got BaseModelOutput"):
        score(model.bert, batch(), metric="accuracy")
    with pytest.raises(DataError, match="the metric nan is NaN over 3 examples"):
        score(model, batch(), metric=type("nan", (), {"__call__": lambda *_: float("nan"), "__name__": "nan"})())
