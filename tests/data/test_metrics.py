from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from bertology.data import metrics
from bertology.errors import DataError
from bertology.importance.score import INVERSE_LOSS

pytestmark = pytest.mark.any_transformers

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def logits(guesses):
    return torch.nn.functional.one_hot(torch.tensor(guesses), 2).double()


@given(pairs)
def test_classification_metrics_equal_scikit_learns(pairs):
    guess, truth = (list(x) for x in zip(*pairs, strict=True))
    given = logits(guess), torch.tensor(truth)
    assert metrics.accuracy(*given) == pytest.approx(sk.accuracy_score(truth, guess))
    assert metrics.f1(*given) == pytest.approx(sk.f1_score(truth, guess, zero_division=0))
    several = len(set(guess) | set(truth)) > 1
    assert metrics.matthews(*given) == pytest.approx(sk.matthews_corrcoef(truth, guess) if several else 0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_matthews_correlation_of_several_classes_equals_scikit_learns(pairs):
    guess, truth = (list(x) for x in zip(*pairs, strict=True))
    given = torch.nn.functional.one_hot(torch.tensor(guess), 4).double(), torch.tensor(truth)
    several = len(set(guess) | set(truth)) > 1
    assert metrics.matthews(*given) == pytest.approx(sk.matthews_corrcoef(truth, guess) if several else 0, abs=1e-9)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_correlations_equal_scipys(pairs):
    guess, truth = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    if guess.std() == 0 or truth.std() == 0:
        assert metrics.pearson(guess[:, None], truth) == metrics.spearman(guess[:, None], truth) == 0
        return
    a, b = stats.pearsonr(guess, truth).statistic, stats.spearmanr(guess, truth).statistic
    assert metrics.pearson(guess[:, None], truth) == pytest.approx(a, abs=1e-9)
    assert metrics.spearman(guess[:, None], truth) == pytest.approx(b, abs=1e-9)
    assert metrics.pearson_spearman(guess[:, None], truth) == pytest.approx((a + b) / 2, abs=1e-9)


def test_ignored_labels_are_left_out():
    assert metrics.accuracy(logits([1, 0, 1]), torch.tensor([1, -100, 0])) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.find_metric("bleu"), "no metric is called 'bleu': wanted a function of .* or one of accuracy, f1"),
        (lambda: metrics.accuracy(torch.zeros(3, 2), torch.zeros(3)), r"wants logits \[example, label\] and integer labels"),
        (lambda: metrics.accuracy(torch.zeros(3, 2), torch.zeros(2).long()), r"got \[3, 2\] and torch.int64 \[2\]"),
        (lambda: metrics.f1(torch.zeros(3, 3), torch.zeros(3).long()), "for two classes, got logits for 3"),
        (lambda: metrics.pearson(torch.zeros(3, 2), torch.zeros(3)), r"one prediction per label, got \[3, 2\] for labels \[3\]"),
        (lambda: metrics.accuracy(torch.zeros(1, 2), torch.tensor([-100])), "no labels to score"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_type_checkers_know_the_names_of_all_metrics():
    assert set(get_args(metrics.MetricName)) == {*metrics.METRICS, INVERSE_LOSS}
