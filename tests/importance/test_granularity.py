"""The two granularities of importance: whose absolute value is taken?"""

import pytest
import torch
import transformers

from bertology import ImportanceAccumulator, accumulate, gated, head_importance, head_outputs, prune_heads
from bertology.errors import DataError
from helpers.small_models import small_t5
from helpers.zoo import BY_NAME, batch, each_alone
from oracles import heads as oracles


def test_by_token_equals_central_differences_at_each_token(family):
    if family.name == "albert":
        pytest.skip("its one output projection serves all layers")
    model, inputs = family.build(), batch((6, 3))
    # Llama's rotary positions and norms are in float32: its differences need a longer step.
    step, tolerance = (1e-3, 1e-3) if family.name == "llama" else (1e-5, 1e-6)
    expected = oracles.token_importance(model, each_alone(inputs), lambda example: model(**example).loss.item(), step)
    found = head_importance(model, inputs, granularity="token")
    torch.testing.assert_close(found.scores, expected, rtol=tolerance, atol=tolerance)
    by_example = head_importance(model, inputs).scores  # the spoiled input
    assert not torch.allclose(by_example, expected, rtol=tolerance, atol=tolerance)


def test_by_token_is_the_sum_of_tokens_output_times_gradient(family):
    model, inputs = family.build(), batch((7, 4, 5, 2))
    outputs = head_outputs(model, inputs, loss="auto")
    each = (outputs.values * outputs.gradients).sum(-1).abs().sum(2)  # [layer, batch, head]
    found = head_importance(model, inputs, granularity="token")
    torch.testing.assert_close(found.scores, each.mean(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.stderr, each.std(1) / 2, rtol=1e-6, atol=1e-8)
    by_example = head_importance(model, inputs)
    torch.testing.assert_close(found.signed, by_example.signed, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.fisher, by_example.fisher, rtol=1e-6, atol=1e-8)
    assert (found.granularity, by_example.granularity) == ("token", "example")


def test_by_token_batches_and_padding_change_nothing(family):
    model, inputs = family.build(), batch((7, 4, 5, 2))
    many = head_importance(model, inputs, granularity="token")
    alone = head_importance(model, each_alone(inputs), granularity="token")
    for name in ("scores", "signed", "fisher", "stderr"):
        torch.testing.assert_close(getattr(many, name), getattr(alone, name), rtol=1e-6, atol=1e-7)


def test_by_token_of_pruned_heads_choices_and_three_stacks():
    model, inputs = BY_NAME["bert"].build(), batch()
    gates = torch.ones(2, 4)
    gates[0, [1, 3]] = gates[1] = 0
    with gated(model, gates):
        expected = head_importance(model, inputs, granularity="token").scores
    prune_heads(model, {0: [1, 3], 1: range(4)})
    found = head_importance(model, inputs, granularity="token").scores
    torch.testing.assert_close(found[0, [0, 2]], expected[0, [0, 2]])
    assert found.isnan().tolist() == [[False, True, False, True], [True] * 4]
    choices = {k: v.repeat(2, 1).reshape(3, 2, -1) for k, v in batch(labels=False).items()}
    choices["labels"] = torch.tensor([1, 0, 0])
    model = transformers.BertForMultipleChoice(BY_NAME["bert"].config()).double().eval()
    at_once = head_importance(model, choices, granularity="token").scores
    one_by_one = [{k: v[i : i + 1] for k, v in choices.items()} for i in range(3)]
    torch.testing.assert_close(at_once, head_importance(model, one_by_one, granularity="token").scores)
    assert (at_once >= head_importance(model, choices).scores).all()
    model, inputs = small_t5(), {**batch(), "labels": torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])}
    by_token, by_example = (head_importance(model, inputs, granularity=how).scores for how in ("token", "example"))
    assert (by_token >= by_example - 1e-12).all()
    assert not torch.allclose(by_token, by_example)


def test_a_checkpoint_of_the_other_granularity_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0.0)
    model, file = BY_NAME["bert"].build(), tmp_path / "sums"

    def cut_off():
        yield batch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(), ImportanceAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, [batch()], ImportanceAccumulator(granularity="token"), checkpoint=file)


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="granularity is 'example' or 'token', got 'word'"):
        head_importance(model, batch(), granularity="word")
    own = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="the gradient does not reach the heads"):
        head_importance(model, batch(), granularity="token", loss=lambda outputs, b: own * 1)
