"""One head alone in its layer scores what the loop says, and is chosen on data of its own."""

import pytest
import torch
from scipy.stats import binomtest

from bertology import Result, ablated, dissect, gated, head_means, prune_heads, score, sole_head_ablation
from bertology.errors import DataError
from helpers.ablation import EQUAL, losses, several
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch
from laws.laws import check_leaves_model_alone

# oracle: one gated model for each head, in a loop.


def alone(anatomy, row, head):
    gates = torch.ones(anatomy.layers, anatomy.heads)
    gates[row] = 0
    gates[row, head] = 1
    return gates


def check(model, batches, metric="inverse_loss", **options):
    found = sole_head_ablation(model, batches, metric=metric, **options)
    anatomy = dissect(model)
    torch.testing.assert_close(found.base_losses, losses(model, batches), **EQUAL)
    for row, head in anatomy.present.nonzero().tolist():
        with gated(model, alone(anatomy, row, head)):
            torch.testing.assert_close(found.losses[row, head], losses(model, batches), **EQUAL)
            expected = score(model, batches, metric=metric).value
        assert found.scores[row, head].item() == pytest.approx(expected, rel=1e-12)
    assert found.scores.isnan().equal(~anatomy.present)
    for row, scores in enumerate(found.scores.tolist()):
        there = [s for s in scores if s == s]
        if there:
            assert found.chosen[row] == scores.index(max(there))
            assert found.change[row].item() == max(there) - found.base
        else:
            assert found.chosen[row] == -1
            assert found.change[row].isnan()
    return found


def test_equals_the_loop(family):
    found = check(family.build(), several())
    assert found.leaking
    assert torch.equal(found.change, found.leaking_change)


def test_encoder_decoders():
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    found = check(seq2seq("t5"), {**batch(labels=False), "labels": labels})
    assert list(found.stack("cross").chosen.shape) == [2]


def test_pruned_models():
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [0, 1, 3], 1: range(4)})
    found = check(model, several(), metric="accuracy")
    assert found.chosen.tolist() == [2, -1]
    assert found.scores[0, 2] == found.base
    assert found.significance().p.isnan().sum() == 7


def test_heads_are_chosen_on_their_own_data():
    model, other = BY_NAME["bert"].build(), [batch((6, 6, 3, 4), seed=s) for s in (11, 12)]
    chosen = sole_head_ablation(model, other, metric="inverse_loss").chosen
    found = sole_head_ablation(model, several(), metric="inverse_loss", choose_on=other)
    leaking = sole_head_ablation(model, several(), metric="inverse_loss")
    assert not found.leaking
    assert torch.equal(found.chosen, chosen)
    assert not torch.equal(found.chosen, leaking.chosen)
    assert torch.equal(found.change, found.scores[torch.arange(2), chosen] - found.base)
    assert torch.equal(found.leaking_change, leaking.change)
    assert (found.change <= found.leaking_change).all()


def test_of_equal_heads_the_first_is_chosen():
    found = sole_head_ablation(BY_NAME["bert"].build(), several(), metric=lambda logits, labels: 0.5)
    assert found.chosen.tolist() == [0, 0]


@pytest.mark.parametrize("replace", ["mean", "resample"])
def test_other_replacements_equal_ablated(replace):
    model, batches = BY_NAME["gpt2"].build(), several()
    found = sole_head_ablation(model, batches, metric="accuracy", replace=replace, seed=2)
    inside = head_means(model, batches).values if replace == "mean" else replace
    for row in range(2):
        for head in range(4):
            with ablated(model, {row: [h for h in range(4) if h != head]}, replace=inside, seed=2):
                torch.testing.assert_close(found.losses[row, head], losses(model, batches), **EQUAL)


def test_significance_of_the_chosen():
    model, texts = BY_NAME["bert"].build(), [batch((5,) * 12, seed=s) for s in range(3)]
    found = sole_head_ablation(model, texts, metric="accuracy")
    test = found.significance("mcnemar", correction="bh")
    assert (~test.p.isnan()).sum(1).tolist() == [1, 1]
    for row, head in enumerate(found.chosen.tolist()):
        right, base = found.logits[row, head].argmax(-1) == found.truths, found.base_logits.argmax(-1) == found.truths
        lost, gained = int((base & ~right).sum()), int((right & ~base).sum())
        expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert test.uncorrected[row, head].item() == pytest.approx(expected)
    assert found.significance("t", of="loss").of == "loss"


def test_leaves_the_model_alone(family):
    def measure(model):
        sole_head_ablation(model, [batch()], metric="accuracy", choose_on=batch(seed=3))

    check_leaves_model_alone(family.build(), measure)


def test_a_pass_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, file = BY_NAME["bert"].build(), tmp_path / "sums"

    def cut_off(data):
        yield from data
        raise KeyboardInterrupt

    other, whole = [batch(seed=3), batch(seed=4)], sole_head_ablation(model, several(), metric="accuracy", choose_on=batch(seed=3))  # fmt: skip
    for data, choose_on in ((several(), cut_off(other[:1])), (cut_off(several()[:2]), other[:1])):
        with pytest.raises(KeyboardInterrupt):
            sole_head_ablation(model, data, metric="accuracy", choose_on=choose_on, checkpoint=file)
    assert file.exists()
    found = sole_head_ablation(model, several(), metric="accuracy", choose_on=other[:1], checkpoint=file)
    assert torch.equal(found.losses, whole.losses)
    assert torch.equal(found.chosen, whole.chosen)
    assert list(tmp_path.iterdir()) == []


def test_comes_back_from_a_file(tmp_path):
    found = sole_head_ablation(BY_NAME["bert"].build(), several(), metric="accuracy")
    found.save(tmp_path / "r")
    again = Result.load(tmp_path / "r")
    assert torch.equal(again.chosen, found.chosen)
    assert again.leaking is True
    assert str(again) == str(found)


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="no metric is called 'bleu'"):
        sole_head_ablation(model, batch(), metric="bleu")
    with pytest.raises(DataError, match="no batches"):
        sole_head_ablation(model, batch(), metric="accuracy", choose_on=[])
