"""Models that run one encoder several times in a forward pass: siamese models, bi-encoders, triplets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bertology import (
    ablated,
    attention_entropy,
    attention_maps,
    dissect,
    gated,
    head_ablation,
    head_importance,
    head_outputs,
    hidden_states,
    prune_heads,
    pruning_curve,
    tap,
)
from bertology.errors import UnknownAnatomy
from helpers.zoo import BY_NAME

ENCODERS = ["bert", "albert", "gpt2", "distilbert"]


class Triplet(nn.Module):
    """Scores a text against two others, which may be more and longer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.text = BY_NAME[name].build().base_model

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, input_ids, attention_mask, good, good_mask, bad, bad_mask) -> Tensor:
        anchor, near = self.embed(input_ids, attention_mask), self.embed(good, good_mask)
        return torch.cat([(anchor * near).sum(-1, keepdim=True), anchor @ self.embed(bad, bad_mask).T], dim=1)


def texts(rows: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[-1, -2:] = 0
    return torch.randint(3, 20, (rows, tokens), generator=generator), mask


def triplets(negatives: int = 5) -> dict[str, Tensor]:
    pairs = [texts(3, 6, 0), texts(3, 6, 1), texts(negatives, 8, 2)]
    names = [("input_ids", "attention_mask"), ("good", "good_mask"), ("bad", "bad_mask")]
    return {name: x for some, pair in zip(names, pairs, strict=True) for name, x in zip(some, pair, strict=True)}


def contrastive(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return -outputs.log_softmax(-1)[:, 0]


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)


def without_columns(model: nn.Module, row: int, head: int) -> Tensor:
    """The outputs with zeros for the head's columns of the output projection, the slow twin of a gate of 0."""
    site, batch = dissect(model).sites[row], triplets()
    weight = site.projection.weight
    columns = slice(head * site.dim, (head + 1) * site.dim)
    before = weight.detach().clone()
    with torch.no_grad():
        if type(site.projection).__name__ == "Conv1D":
            weight[columns] = 0
        else:
            weight[:, columns] = 0
        outputs = run(model, batch)
        weight.copy_(before)
    return outputs


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "albert"])
def test_a_gate_holds_in_every_run(name):
    model, batch, gates = Triplet(name).eval(), triplets(), torch.ones(2, 4)
    gates[1, 2] = 0
    expected = without_columns(model, 1, 2)
    with gated(model, gates):
        found = run(model, batch)
    torch.testing.assert_close(found, expected)
    with ablated(model, {1: [2]}):
        torch.testing.assert_close(run(model, batch), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(run(model, batch), expected)
    prune_heads(model, {1: [2]})
    torch.testing.assert_close(run(model, batch), expected)


def test_layers_that_share_a_module_are_told_apart_in_every_run():
    model, batch = Triplet("albert").eval(), triplets()
    anatomy, seen = dissect(model), []

    def note(site, x):
        seen.append((site.row, x.shape[0]))
        return x

    with tap(anatomy, "heads", edit=note):
        run(model, batch)
    assert seen == [(0, 3), (1, 3), (0, 3), (1, 3), (0, 5), (1, 5)]


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2"])
@pytest.mark.parametrize("granularity", ["example", "token"])
def test_importance_is_the_slope_of_a_gate_that_holds_in_both_runs(name, granularity):
    model = Twins(name).double().eval()
    batch = pairs()
    found = head_importance(model, batch, loss=squared, granularity=granularity)
    gates = found.signed if granularity == "token" else found.scores
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for row, head in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        ends = []
        for value in (1.0001, 0.9999):
            some = torch.ones(2, 4, dtype=torch.float64)
            some[row, head] = value
            with gated(model, some):
                ends.append(squared(run(model, batch), batch))
        each = (ends[0] - ends[1]) / 0.0002
        expected[row, head] = each.mean() if granularity == "token" else each.abs().mean()
    torch.testing.assert_close(gates, expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gates, expected.flip(1), rtol=1e-3, atol=1e-6)


class Twins(nn.Module):
    """The difference of two texts."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.text = BY_NAME[name].build().base_model

    def forward(self, input_ids: Tensor, other: Tensor) -> Tensor:
        return (
            self.text(input_ids=input_ids).last_hidden_state[:, -1]
            - self.text(input_ids=other).last_hidden_state[:, -1]
        )


def pairs() -> dict[str, Tensor]:
    return {"input_ids": texts(4, 6, 0)[0], "other": texts(4, 9, 1)[0]}


def squared(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return outputs.square().sum(-1)


def test_gates_of_examples_need_runs_of_as_many_rows():
    model, batch = Triplet("bert").eval(), triplets()
    with pytest.raises(Exception, match="gates are for a batch of 3, the model runs on 5 rows"):
        head_importance(model, batch, loss=contrastive)
    batch = {name: x if "mask" not in name else torch.ones_like(x) for name, x in triplets(negatives=3).items()}
    found = head_importance(model, batch, loss=contrastive).scores
    assert (found > 0).all()


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_every_head_can_be_ablated_and_the_curve_walked(name):
    model = Triplet(name).eval()
    batch = {name: x if "mask" not in name else torch.ones_like(x) for name, x in triplets(negatives=3).items()}
    found = head_ablation(model, batch, metric="inverse_loss", loss=contrastive)
    expected = torch.zeros(2, 4)
    for row, head in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        with ablated(model, [(row, head)]):
            expected[row, head] = contrastive(run(model, batch), batch).mean()
    torch.testing.assert_close(found.loss_change, expected - found.base_loss, check_dtype=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.loss_change, expected.flip(0) - found.base_loss, check_dtype=False)
    curve = pruning_curve(model, batch, metric="inverse_loss", loss=contrastive)
    assert curve.scores[0] == pytest.approx(1 / found.base_loss, rel=1e-5)


def test_what_would_mix_several_texts_is_refused():
    model, batch = Triplet("bert").eval(), triplets()
    said = r"the model runs text\.encoder \(BertEncoder\) several times in one forward pass"
    for call in (
        lambda: attention_entropy(model, batch),
        lambda: head_outputs(model, batch),
        lambda: head_outputs(model, triplets(negatives=3), loss=contrastive),
        lambda: head_ablation(model, batch, metric="inverse_loss", loss=contrastive, replace="resample"),
    ):
        with pytest.raises(UnknownAnatomy, match=said):
            call()
    with ablated(model, {0: [1]}, replace="mean"), pytest.raises(UnknownAnatomy, match=said):
        run(model, batch)
    # The part by itself, on each text.
    alone = {"input_ids": batch["bad"], "attention_mask": batch["bad_mask"]}
    assert attention_entropy(model.text, alone).mean.shape == (2, 4)


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2"])
def test_maps_and_states_have_an_entry_for_each_run(name):
    model, batch = Triplet(name).eval(), triplets()
    texts_of_runs = [("input_ids", "attention_mask"), ("good", "good_mask"), ("bad", "bad_mask")]
    for call in (attention_maps, hidden_states):
        found = call(model, batch)
        assert not found.masks
        assert len(found.stacks) == 3
        for run_of, (ids, mask) in zip(found.stacks.values(), texts_of_runs, strict=True):
            alone = {"input_ids": batch[ids], "attention_mask": batch[mask], "use_cache": False}
            given = {key: x for key, x in alone.items() if key != "use_cache" or name == "gpt2"}
            torch.testing.assert_close(run_of, call(model.text, given).values)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(*list(found.stacks.values())[:2])
