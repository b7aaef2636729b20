"""Heads with the outputs that they have on corrupted inputs: plain hooks put the same in."""

import pytest
import torch

from bertology import dissect, faithfulness, prune_heads
from bertology.errors import DataError
from helpers.ablation import rest, several
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch, each_alone

# oracle: each text alone, with plain hooks of torch


def flipped(inputs):
    """The same texts with other tokens in the middle: as many of them, and the same mask."""
    ids = inputs["input_ids"].clone()
    ids[:, 1:3] = torch.where(ids[:, 1:3] > 20, 7, 31)
    return {**inputs, "input_ids": ids, "labels": 1 - inputs["labels"]}


def outputs_of_heads(model, inputs):
    """{row: [batch, token, heads * dim]}, by a plain hook."""
    found, hooks = {}, []
    for site in dissect(model).sites:
        look = lambda module, args, row=site.row: found.setdefault(row, args[0].clone())  # noqa: E731
        hooks.append(site.place.register_forward_pre_hook(look))
    with torch.no_grad():
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    for hook in hooks:
        hook.remove()
    return found


def losses_with(model, inputs, others, kept):
    """Oracle: each text alone, with the outputs of all other heads put in by plain hooks."""
    losses = []
    for one, other in zip(each_alone(inputs), each_alone(others), strict=True):
        put_in, hooks = outputs_of_heads(model, other), []
        for site in dissect(model).sites:

            def put(module, args, site=site):
                x = args[0].clone()
                for number, head in enumerate(site.kept):
                    if (site.row, head) not in kept:
                        part = slice(number * site.dim, (number + 1) * site.dim)
                        x[..., part] = put_in[site.row][..., part]
                return (x,)

            hooks.append(site.place.register_forward_pre_hook(put))
        with torch.no_grad():
            losses.append(float(model(**one).loss))
        for hook in hooks:
            hook.remove()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pruned", [False, True])
def test_against_corrupted_inputs_equals_plain_hooks(name, pruned):
    model, kept = BY_NAME[name].build(), [(0, 1), (1, 2), (1, 3)]
    if pruned and name != "llama":
        prune_heads(model, {0: [0], 1: [1]})
    others = [flipped(one) for one in several()]
    found = faithfulness(model, several(), kept, metric="inverse_loss", corrupted=others, random_sets=2)
    numbers = zip(several(), others, strict=True)
    each = [[losses_with(model, x, y, set_) for set_ in ([], kept, rest(model, []))] for x, y in numbers]
    sizes = torch.tensor([len(x["labels"]) for x in several()]).double()
    none, some, whole = (torch.tensor(each).double() * sizes[:, None]).sum(0) / sizes.sum()
    assert found.of_loss == pytest.approx(float((some - none) / (whole - none)), rel=1e-4)
    assert found.of_loss != pytest.approx(float((some - none) / (whole - none)) + 0.01, rel=1e-4)
    assert float(found.base_losses.mean()) == pytest.approx(float(whole))
    assert found.replace == "corrupted"
    again = faithfulness(model, several(), rest(model, []), metric="inverse_loss", corrupted=others, random_sets=0)
    assert again.of_loss == pytest.approx(1)


def test_corrupted_inputs_of_an_encoder_decoder_with_padding():
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(labels=False), "labels": labels}
    others = {**inputs, "input_ids": flipped({**inputs, "labels": labels[:, 0] * 0})["input_ids"]}
    model = seq2seq("t5")
    found = faithfulness(model, inputs, ["XL0H1", "EL1H0"], metric="inverse_loss", corrupted=others, random_sets=2)
    one_by_one = [{key: x[i : i + 1] for key, x in inputs.items()} for i in range(3)]
    corrupted = [{key: x[i : i + 1] for key, x in others.items()} for i in range(3)]
    alone = faithfulness(
        model, one_by_one, ["XL0H1", "EL1H0"], metric="inverse_loss", corrupted=corrupted, random_sets=2
    )
    assert found.of_loss == pytest.approx(alone.of_loss, rel=1e-5)


def test_corrupted_inputs_that_do_not_fit():
    model, inputs = BY_NAME["bert"].build(), several()
    others = [flipped(one) for one in inputs]
    keep = {"heads": [(0, 1)], "metric": "inverse_loss", "random_sets": 0}
    with pytest.raises(DataError, match="too few"):
        faithfulness(model, inputs, corrupted=others[:1], **keep)
    with pytest.raises(DataError, match="there are more of them"):
        faithfulness(model, inputs[:1], corrupted=others, **keep)
    with pytest.raises(DataError, match="not both"):
        faithfulness(model, inputs, corrupted=others, replace="zero", **keep)
    shorter = [{k: x[:, :-1] if x.dim() > 1 else x for k, x in one.items()} for one in others]
    with pytest.raises(DataError, match="tokens in one text"):
        faithfulness(model, inputs, corrupted=shorter, **keep)
    with pytest.raises(DataError, match="faithfulness is not defined"):
        faithfulness(model, inputs, corrupted=inputs, **keep)
