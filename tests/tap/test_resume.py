"""Of the last block only the first position is computed where nothing else is read, and only there."""

import copy

import pytest
import torch

from bertology import accumulate, dissect, head_ablation, sole_head_ablation
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import VariantAccumulator
from bertology.tap import branches, first_position_only, tail_noted
from helpers.ablation import check, several
from helpers.zoo import BY_NAME, batch
from laws.taps import EVERY, texts


def used(model, batches, loss=None):
    """For each batch, whether only first positions were computed."""
    accumulator, seen = VariantAccumulator(one_off, "inverse_loss", loss), []
    update = accumulator.update

    def noting(inputs, outputs):
        update(inputs, outputs)
        seen.append(accumulator._branches.left_out.tail)

    accumulator.update = noting
    accumulate(model, batches, accumulator)
    return seen


# ALBERT's layer runs twice: its products are not the last block's alone. GPTs and Llama read the last token.
READ_FIRST = ("bert", "roberta", "distilbert", "electra")


def test_classifiers_that_read_the_first_position(family):
    assert used(family.build(), several()) == [family.name in READ_FIRST] * 3


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_language_models_read_every_position(name):
    kind = EVERY[name].build("lm")
    inputs = texts(name) if name == "bart" else several(kind="lm")
    assert not any(used(kind, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2", "lm"), ("llama", "lm"), ("gpt2", "classifier"), ("bert", "classifier")]
)
def test_half_precision_leaves_out_no_more(name, kind, dtype):
    """Losses of other positions may differ by less than half precision rounds in a deep model."""
    model = BY_NAME[name].build(kind)
    head = model.get_output_embeddings() or getattr(model, "score", None) or model.classifier
    with torch.no_grad():
        head.weight.mul_(0.02)
    model.to(dtype)
    inputs = several(kind="lm") if kind == "lm" else several()
    assert used(model, inputs) == [name == "bert"] * 3
    found = head_ablation(model, inputs, metric="inverse_loss")
    exact = head_ablation(model.float(), inputs, metric="inverse_loss")
    rounding = (found.base_losses - exact.base_losses).abs().max()
    assert (found.losses - exact.losses).nan_to_num().abs().max() < 8 * rounding


def test_the_tail_is_what_is_behind_the_attention_of_the_last_block():
    model, inputs = BY_NAME["bert"].build(), batch(labels=False)
    with torch.no_grad(), tail_noted(dissect(model)) as tail:
        expected = model(**inputs).logits
    last = model.bert.encoder.layer[1]
    assert tail == [last.attention.output.dense, last.intermediate.dense, last.output.dense]
    seen = []
    hook = last.register_forward_hook(
        lambda m, args, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad(), first_position_only(tail):
        torch.testing.assert_close(model(**inputs).logits, expected)
    hook.remove()
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(seen[0][:, 0], states[:, 0])
    assert not torch.allclose(seen[0], states)
    assert not [m for m in model.modules() if "forward" in vars(m)]


def test_a_position_that_only_some_batches_ask_for():
    """The first batch asks for the first position of every example, the second for others."""

    def loss(outputs, inputs):
        states = outputs.last_hidden_state
        return states[torch.arange(len(states)), inputs["token_type_ids"].sum(1)].sin().sum(-1)

    def asking(seed, places):
        made = batch(labels=False, seed=seed)
        return {**made, "token_type_ids": (torch.arange(7) < torch.tensor(places)[:, None]).long()}

    model, batches = BY_NAME["bert"].build().bert, [asking(3, (0, 0, 0)), asking(4, (0, 2, 3)), asking(5, (0, 0, 0))]
    check(model, batches, loss=loss)
    assert used(model, batches, loss) == [True, False, True]


def test_a_last_block_that_mixes_positions_behind_its_attention():
    """What the other positions get there is read by the first one."""
    model, batches = BY_NAME["bert"].build(), several()
    model.bert.encoder.layer[1].output.dense.register_forward_hook(lambda m, args, x: x + 0.5 * x.flip(1))
    check(model, batches, metric="accuracy")
    assert used(model, batches) == [False] * 3


def test_pooling_over_positions():
    model, batches = BY_NAME["bert"].build(), several()
    pooler = copy.deepcopy(model.bert.pooler)
    model.bert.pooler.forward = lambda states: pooler(states.mean(1, keepdim=True))
    check(model, batches, metric="accuracy")
    assert used(model, batches) == [False] * 3


@pytest.mark.parametrize("replace", ["zero", "mean", "resample"])
def test_the_results_are_those_of_all_positions(replace, monkeypatch):
    model, batches = BY_NAME["roberta"].build(), several()
    found = sole_head_ablation(model, batches, metric="accuracy", replace=replace)
    monkeypatch.setattr(branches.Branches, "_reads_first", lambda *_: False)
    whole = sole_head_ablation(model, batches, metric="accuracy", replace=replace)
    torch.testing.assert_close(found.losses, whole.losses)
    torch.testing.assert_close(found.logits, whole.logits)
