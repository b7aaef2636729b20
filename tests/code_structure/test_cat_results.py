import dataclasses

import pytest
import torch

from bertology import Result
from bertology.code_structure.cat_results import CatComparison, CatGain, CatScores, cat_mean, scores_of
from bertology.errors import DataError, ShapeError
from oracles import cat as oracles

pytestmark = pytest.mark.any_transformers

# Scores.


def counted(seed=0, layers=2, heads=3, examples=30):
    generator = torch.Generator().manual_seed(seed)
    either = torch.randint(1, 40, (layers, heads + 1, examples), generator=generator)
    either[0, 0, 3] = either[1, 2, 4:] = 0  # left out; and nearly all of one head
    matched = (either * torch.rand(either.shape, generator=generator)).long()
    return matched, either


def made(counts, **options):
    matched, either = counts
    names = tuple(f"f{i}" for i in range(matched.shape[-1]))
    labels = tuple(map(str, range(len(matched))))
    counts = matched[:, 0], either[:, 0], matched[:, 1:], either[:, 1:]
    return scores_of(*counts, names=names, labels=labels, **options)


def check_scores(scores, counts):
    for layer in range(2):
        for row in range(4):
            macro, micro, used = oracles.scores(*(x[layer, row].tolist() for x in counts))
            found = (
                (scores.macro[layer], scores.micro[layer], scores.used[layer]) if row == 0 else
                (scores.head_macro[layer, row - 1], scores.head_micro[layer, row - 1], scores.head_used[layer, row - 1])
            )  # fmt: skip
            assert [x.item() for x in found] == pytest.approx([macro, micro, used], abs=1e-12)


def test_scores_equal_loops():
    counts = counted()
    scores = made(counts)
    check_scores(scores, counts)
    assert scores.skipped.tolist() == [1, 0]
    assert scores.head_used[1, 1] == 4
    spoiled = counts[0].clone()
    spoiled[1, 2, 0] += 1
    with pytest.raises(AssertionError):
        check_scores(scores, (spoiled, counts[1]))


def test_a_pruned_head_has_no_score():
    matched, either = counted()
    matched[0, 2] = either[0, 2] = 0
    scores = made((matched, either))
    assert scores.head_macro[0].isnan().tolist() == scores.head_micro[0].isnan().tolist() == [False, True, False]
    low, high = scores.head_interval(resamples=50)
    assert low[0].isnan().tolist() == high[0].isnan().tolist() == [False, True, False]
    assert scores.head_used[0, 1] == 0


def test_an_interval_of_too_few_snippets_is_not_known():
    matched, either = counted()
    either[0, 1, 1:] = 0
    matched = matched.minimum(either)
    low, high = made((matched, either)).head_interval()
    assert torch.stack([low, high])[:, 0, 0].isnan().all()  # one snippet in thirty: a third of the draws are without it
    assert low[1, 1] < high[1, 1]  # four: one draw in fifty


def test_scores_are_kept(tmp_path):
    scores = made(counted(), settings="all leaves")
    scores.save(tmp_path / "scores.safetensors")
    again = Result.load(tmp_path / "scores.safetensors")
    assert isinstance(again, CatScores)
    assert torch.equal(again.head_macro, scores.head_macro)
    assert str(again) == str(scores)
    assert str(scores).startswith("CAT-scores of 30 snippets, all leaves; chance is 0.143\nlayer 0: ")
    gain = scores.beyond(made(counted(1)), resamples=20)
    gain.save(tmp_path / "gain.safetensors")
    assert isinstance(Result.load(tmp_path / "gain.safetensors"), CatGain)


def comparison(either):
    """A comparison of [layer, example] counts, in which nothing matches."""
    counts = torch.tensor(either)[None].expand(2, -1, -1)
    heads = counts[:, :, None].expand(-1, -1, 3, -1)
    layers, examples = counts.shape[1:]
    return CatComparison(
        torch.zeros_like(counts), counts, torch.zeros_like(heads), heads, ("attention", "shuffled"), (None,) * layers,
        tuple("abcdef"[:examples]), 0.25, True, tuple(map(str, range(layers))),
    )  # fmt: skip


def test_a_table_without_scores_says_why():
    nothing = comparison([[0], [0]])
    assert "|" not in str(nothing)
    assert "CAT-scores of 1 snippet; " in str(nothing)
    assert "No layer has a score, since no snippet has a pair of leaves that is high in attention or near" in str(
        nothing
    )
    assert str(nothing.scores).count("no score, since no snippet has a pair of leaves") == 2
    assert str(nothing.beyond("shuffled")).count("no gain, since there is no snippet in which both have a score") == 2
    of_encoder = dataclasses.replace(comparison([[3], [0]]), labels=("encoder.0", "decoder.0"))
    assert "decoder" not in str(of_encoder.beyond("shuffled"))  # it reads no code
    some = comparison([[0, 0], [3, 0], [0, 0]])
    assert "| 1 | 0.000 | 0.000 |" in str(some)
    assert "No score in layers 0, 2, since no snippet has a pair" in str(some)
    assert "| 0 |" not in str(some)
    assert "score in layers" not in str(comparison([[3], [4]]))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_intervals_hold_the_truth(average):
    """Of many samples of snippets, nearly as many as the level says."""
    generator = torch.Generator().manual_seed(0)
    either = torch.randint(5, 60, (100, 1, 60), generator=generator)
    ratios = torch.rand(either.shape, generator=generator) * 0.6  # 0.3 on average
    matched = (either * ratios).round().long()
    scores = made((matched.repeat(1, 2, 1), either.repeat(1, 2, 1)))
    low, high = scores.interval(0.9, average=average, resamples=300)
    assert 80 <= ((low < 0.3) & (high > 0.3)).sum() <= 98
    again = scores.interval(0.9, average=average, resamples=300)
    assert torch.equal(low, again[0])
    assert not torch.equal(low, scores.interval(0.9, average=average, resamples=300, seed=1)[0])
    head_low, head_high = scores.head_interval(0.9, average=average, resamples=300)
    torch.testing.assert_close(head_low[:, 0], low)
    torch.testing.assert_close(head_high[:, 0], high)


def test_beyond_a_null_model_is_paired():
    matched, either = counted()
    scores, null = made((matched, either)), made((matched // 2, either))
    gain = scores.beyond(null, resamples=200)
    torch.testing.assert_close(gain.gain, scores.macro - null.macro)
    torch.testing.assert_close(gain.head_gain, scores.head_macro - null.head_macro)
    assert ((gain.low < gain.gain) & (gain.gain < gain.high)).all()
    itself = scores.beyond(scores, average="micro", resamples=50)
    assert torch.stack([itself.gain, itself.low, itself.high]).eq(0).all()  # drawn apart, it would have a width
    # Narrower than if the two were drawn apart: snippets that are easy are easy for both.
    apart = (scores.interval()[1] - scores.interval()[0]) ** 2 + (null.interval()[1] - null.interval()[0]) ** 2
    assert (gain.high - gain.low < apart.sqrt()).all()


def test_beyond_takes_the_snippets_that_both_can_use():
    matched, either = counted()
    other = either.clone()
    other[0, 0, :10] = 0
    gain = made((matched, either)).beyond(made((matched * (other > 0) // 2, other)), resamples=50)
    assert gain.used.tolist() == [20, 30]
    both = slice(10, None)
    expected = cat_mean(matched[0, 0, both], either[0, 0, both]) - cat_mean(
        matched[0, 0, both] // 2, either[0, 0, both]
    )
    torch.testing.assert_close(gain.gain[0], expected)


def test_scores_check_their_counts():
    matched, either = counted()
    scores = made((matched, either))
    with pytest.raises(DataError, match="0 <= matched <= either"):
        made((either + 1, either))
    with pytest.raises(ShapeError, match=r"\[layer, example\] = \[2, 30\] twice"):
        scores_of(matched[0], either[:, 0], matched, either, names=scores.names, labels=scores.labels)
    with pytest.raises(DataError, match="scores of 30 snippets and of 20 others"):
        scores.beyond(made((matched[..., :20], either[..., :20])))
    with pytest.raises(ShapeError, match=r"\[2, 3, 30\], got \[2, 2, 30\]"):
        scores.beyond(made((matched[:, :3], either[:, :3])))
    with pytest.raises(DataError, match="average must be 'macro' or 'micro', got 'mean'"):
        scores.interval(average="mean")
    with pytest.raises(DataError, match="between 0 and 1, got 95"):
        scores.interval(95)
    with pytest.raises(DataError, match="resamples, the number of bootstrap draws, must be 1 or more, got 0"):
        scores.interval(resamples=0)


def test_gains_are_told_by_layer():
    matched, either = torch.tensor([[6, 5, 6, 7]]), torch.full((1, 4), 10)
    names = tuple("abcd")
    mine, none = (
        scores_of(m, either, m[:, None], either[:, None], names=names, labels=("0",)) for m in (matched, matched - 4)
    )
    told = str(mine.beyond(none))
    assert told == "layer 0: +0.4000 (95 % from +0.4000 to +0.4000) of 4 snippets; 1 of 1 head above 0"
