"""Tests of significance give what scipy, loops over the examples and lists worked out by hand give."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, ttest_rel

from bertology import Head, head_ablation
from bertology.data.metrics import f1
from bertology.errors import DataError, MissingExtra
from bertology.importance.significance import bootstrap, corrected, mcnemar, t_test
from helpers.ablation import bert
from helpers.zoo import BY_NAME, batch
from oracles.heads import benjamini_hochberg, holm


def texts(count=4):
    return [batch((5,) * 9, seed=s) for s in range(count)]


def test_holm_by_hand():
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    # 0.005 · 4, 0.01 · 3, 0.03 · 2; 0.04 · 1 would fall below what came before.
    torch.testing.assert_close(corrected(p, "holm"), torch.tensor([0.03, 0.06, 0.06, 0.02], dtype=torch.float64))


def test_benjamini_hochberg_by_hand():
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    # 0.04 · 4 / 4, 0.03 · 4 / 3, 0.01 · 4 / 2, 0.005 · 4 / 1.
    torch.testing.assert_close(corrected(p, "bh"), torch.tensor([0.02, 0.04, 0.04, 0.02], dtype=torch.float64))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_equal_their_twins(values):
    p = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(corrected(p, "holm").tolist(), holm(values))
    torch.testing.assert_close(corrected(p, "bh").tolist(), benjamini_hochberg(values))
    torch.testing.assert_close(corrected(p, "bh"), torch.from_numpy(false_discovery_control(p.numpy(), method="bh")))
    assert torch.equal(corrected(p, None), p)


def test_heads_that_are_not_there_are_not_counted():
    nan = float("nan")
    p = torch.tensor([[0.01, nan], [nan, 0.02]], dtype=torch.float64)
    torch.testing.assert_close(
        corrected(p, "holm"), torch.tensor([[0.02, nan], [nan, 0.02]], dtype=torch.float64), equal_nan=True
    )


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_a_binomial_test(pairs):
    right, base = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
    gained, lost = sum(r and not b for r, b in pairs), sum(b and not r for r, b in pairs)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(right[None], base).item() == pytest.approx(expected)


def test_t_equals_scipy():
    x, y = torch.randn(5, 40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    expected = [ttest_rel(one, y.numpy()).pvalue for one in x.numpy()]
    torch.testing.assert_close(t_test(x - y).tolist(), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(t_test(x).tolist(), expected)
    same = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]], dtype=torch.float64)
    assert t_test(same).tolist() == [1, 0]
    with pytest.raises(DataError, match="a t-test wants two examples or more, got 1"):
        t_test(torch.ones(2, 1))


def test_bootstrap_equals_a_plain_loop():
    changes = torch.randn(30, dtype=torch.float64) + 0.3
    generator = torch.Generator().manual_seed(5)
    above = below = 0
    for _ in range(200):
        drawn = [changes[i].item() for i in torch.randint(30, (30,), generator=generator).tolist()]
        above += sum(drawn) >= 0
        below += sum(drawn) <= 0
    expected = min(1, 2 * (min(above, below) + 1) / 201)
    found = bootstrap(lambda some: changes[some].mean()[None], 30, 200, 5)
    assert found.item() == pytest.approx(expected)
    assert bootstrap(lambda some: torch.zeros(2), 30, 50, 0).tolist() == [1, 1]


def test_bootstrap_of_any_metric():
    found = head_ablation(BY_NAME["bert"].build(), texts(), metric="f1")
    p = found.significance(resamples=60, correction=None, seed=7).p
    generator = torch.Generator().manual_seed(7)
    n = found.examples
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(60)]
    for row in range(2):
        for head in range(4):
            changes = [
                f1(found.logits[row, head][d], found.truths[d]) - f1(found.base_logits[d], found.truths[d])
                for d in draws
            ]
            rarer = min(sum(c <= 0 for c in changes), sum(c >= 0 for c in changes))
            assert p[row, head].item() == pytest.approx(min(1, 2 * (rarer + 1) / 61))


def test_of_a_result():
    found = head_ablation(BY_NAME["bert"].build(), texts(), metric="accuracy")
    right = found.logits.argmax(-1) == found.truths
    base = found.base_logits.argmax(-1) == found.truths
    t = found.significance("t", correction=None)
    loss = found.significance("t", of="loss", correction=None)
    exact = found.significance("mcnemar", correction=None)
    drawn = found.significance(correction=None, resamples=100)
    assert (t.of, loss.of, exact.of, drawn.of) == ("right", "loss", "right", "accuracy")
    for place in ((0, 1), (1, 3)):
        assert loss.p[place].item() == pytest.approx(ttest_rel(found.losses[place], found.base_losses).pvalue)
        if (right[place] != base).any():
            assert t.p[place].item() == pytest.approx(ttest_rel(right[place].double(), base.double()).pvalue)
        discordant = (right[place] != base).sum().item()
        gained = (right[place] & ~base).sum().item()
        assert exact.p[place].item() == pytest.approx(binomtest(gained, discordant).pvalue if discordant else 1)
    generic = head_ablation(BY_NAME["bert"].build(), texts(), metric=accuracy_of_ones_own)
    again = generic.significance(correction=None, resamples=100, metric=accuracy_of_ones_own)
    torch.testing.assert_close(again.p, drawn.p)
    assert loss.heads(alpha=2) == [Head(row, head) for row in range(2) for head in range(4)]
    assert loss.heads(alpha=0) == []


def accuracy_of_ones_own(logits, labels):
    return (logits.argmax(-1) == labels).double().mean().item()


def test_examples_of_several_labels_are_drawn_whole():
    one = batch()
    words = {**one, "labels": (one["input_ids"] % 3).masked_fill(one["attention_mask"] == 0, -100)}
    found = head_ablation(bert("TokenClassification", num_labels=3), [words, words], metric="accuracy")
    right = (found.logits.argmax(-1) == found.truths).double()
    base = (found.base_logits.argmax(-1) == found.truths).double()
    assert found.example_of.bincount().tolist() == [7, 4, 5, 7, 4, 5]
    shares = torch.stack([(right - base)[..., found.example_of == i].mean(-1) for i in range(6)], -1)
    p = found.significance("t", correction=None).p
    for row, head in (shares != 0).any(-1).nonzero().tolist():
        zero = torch.zeros(6)
        assert p[row, head].item() == pytest.approx(ttest_rel(shares[row, head], zero).pvalue)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(6, (6,), generator=generator).tolist() for _ in range(50)]
    rows = [torch.cat([(found.example_of == i).nonzero().flatten() for i in d]) for d in draws]
    changes = torch.stack([right[..., r].mean(-1) - base[r].mean() for r in rows])
    rarer = torch.minimum((changes <= 0).sum(0), (changes >= 0).sum(0))
    torch.testing.assert_close(
        found.significance(resamples=50, correction=None).p, (2 * (rarer + 1) / 51).clamp_max(1).double()
    )
    with pytest.raises(DataError, match="McNemar's test is about one label an example"):
        found.significance("mcnemar")


def test_errors(monkeypatch):
    found = head_ablation(BY_NAME["bert"].build(), texts(1), metric=accuracy_of_ones_own)
    with pytest.raises(DataError, match="wanted test='t', 'mcnemar' or 'bootstrap'.* got 'z' of 'metric'"):
        found.significance("z")
    with pytest.raises(DataError, match="pass metric=, the function 'accuracy_of_ones_own' itself"):
        found.significance()
    with pytest.raises(DataError, match="correction takes 'holm', 'bh' or None, got 'bonferroni'"):
        found.significance("t", correction="bonferroni")
    with pytest.raises(DataError, match="resamples, the number of bootstrap draws, must be 1 or more, got 0"):
        found.significance(of="loss", resamples=0)
    numbers = {**batch(), "labels": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}
    regression = head_ablation(bert("SequenceClassification", num_labels=1), numbers, metric="pearson")
    with pytest.raises(
        DataError, match="this test needs classes that are right or wrong, got other labels: take of='loss'"
    ):
        regression.significance("t")
    lm = head_ablation(BY_NAME["bert"].build(), texts(1), metric="inverse_loss")
    assert lm.significance("t").of == "loss"
    with pytest.raises(DataError, match="McNemar's test"):
        lm.significance("mcnemar")
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtra, match=r"pip install 'bertology\[stats\]'"):
        found.significance("t")
    with pytest.raises(MissingExtra, match=r"pip install 'bertology\[stats\]'"):
        found.significance(of="loss", correction="bh")
    found.significance(of="loss", resamples=2)


def test_the_bootstrap_draws_often_enough_to_find_any_head():
    found = head_ablation(BY_NAME["bert"].build(), batch((9, 6, 8, 5, 7, 9, 8, 6)), metric="inverse_loss")
    clear = replace(found, losses=found.base_losses.expand(2, 4, -1) + 1)
    assert clear.significance("bootstrap").p.max() < 0.01
    assert clear.significance("bootstrap", resamples=1000).p.min() > 0.01
    assert len(clear.significance("bootstrap").heads(0.01)) == 8
