import dataclasses
import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bertology.edge_probing.optimizer import AMSGrad, Patience, Training
from bertology.errors import DataError
from helpers.edge_training import close

pytestmark = pytest.mark.any_transformers

# The optimizer


def test_steps_equal_torchs_amsgrad_on_each_probe():
    draw = torch.Generator().manual_seed(0)
    weights, lrs = torch.randn(4, 11, generator=draw), [1e-2, 1e-3, 1e-2, 0.3]
    alone = [x.clone().requires_grad_() for x in weights]
    optimizers = [torch.optim.Adam([x], lr=lr, amsgrad=True) for x, lr in zip(alone, lrs, strict=True)]
    mine = AMSGrad(weights)
    for step in range(30):
        gradient = (
            torch.randn(len(lrs), 11, generator=draw) * 10 / (step + 1)
        )  # it shrinks: the highest mean square counts
        for x, g, optimizer in zip(alone, gradient, optimizers, strict=True):
            x.grad = g.clone()
            torch.nn.utils.clip_grad_norm_([x], 5.0)
            optimizer.step()
        mine.step(weights, gradient, lrs, 5.0)
        if step == 20:  # some go
            for kept in (alone, optimizers, lrs):
                del kept[1]
            mine.select([0, 2, 3])
            weights = weights[[0, 2, 3]]
        close(weights, torch.stack(alone))
    assert (mine.moments[2] > mine.moments[1]).any()  # where plain Adam would go further
    with pytest.raises(AssertionError):
        close(weights, torch.stack(alone) + 1e-5)


def test_each_probes_gradient_is_clipped_by_its_own_norm():
    gradient = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    AMSGrad(gradient).step(torch.zeros(3, 2), gradient, [1.0] * 3, 5.0)
    close(gradient, torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))


# Patience


def seen(scores, training):
    """The learning rates after each validation, and why and when it stopped."""
    patience, lrs = Patience(training.lr), []
    for score in scores:
        patience.see(score, 0.0, training)
        lrs.append(patience.lr)
        if patience.stops(training):
            break
    return lrs, patience.stops(training), len(lrs)


def test_the_learning_rate_is_halved_after_five_validations_that_do_not_improve():
    training = Training(lr=1.0, min_lr=0.0)
    # The best is at the second; growth of less than the threshold does not count.
    lrs, why, _ = seen([0.1, 0.5, *[0.50005] * 5, 0.6, *[0.6] * 4, 0.2, 0.7], training)
    assert lrs == [1.0] * 6 + [0.5] * 6 + [0.25] * 2
    assert why == ""


def test_the_learning_rate_is_that_of_torchs_plateau():
    for seed in range(20):
        scores = torch.rand(60, generator=torch.Generator().manual_seed(seed)).mul(50).floor().div(50).tolist()
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        # What torch calls patience is how many are let pass: it halves at one more.
        plateau = ReduceLROnPlateau(optimizer, "max", 0.5, patience=4, threshold=1e-4, threshold_mode="abs", eps=0)
        patience, training = Patience(1.0), Training()
        for score in scores:
            plateau.step(score)
            patience.see(score, 0.0, training)
            assert patience.lr == optimizer.param_groups[0]["lr"]
        assert patience.best == max(range(60), key=lambda place: (scores[place], -place))


def test_when_a_probe_stops():
    training = Training(min_lr=0.0)
    assert seen([0.5, *[0.4] * 30], training)[1:] == ("patience", 21)
    assert seen([0.4, 0.5, *[0.5] * 30], training)[1:] == ("patience", 22)
    assert seen([place / 1000 for place in range(200)], training)[1:] == ("validations", 100)
    # From 1e-4, the seventh halving goes below 1e-6.
    assert seen([0.5] * 100, Training(patience_stop=90))[1:] == ("learning rate", 36)
    assert seen([0.5, *[0.0] * 30], Training(max_validations=21))[1:] == ("patience", 21)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"dev_records": 0}, "dev_records must be 1 or more, got 0"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"clip": math.nan}, "clip must be a number, got nan"),
        ({"choose_by": "accuracy"}, "choose_by is 'f1' or 'loss', got 'accuracy'"),
        ({"threshold": -1.0}, "threshold must be a number, 0 or more, got -1.0"),
    ],
)
def test_settings_that_make_no_training(change, said):
    with pytest.raises(DataError, match=said):
        Training(**change)


def test_the_papers_settings():
    assert Training.large().max_steps == 250_000
    assert Training().max_steps == 50_000
    assert Training.small().max_steps == 10_000
    paper = (1e-4, 32, 5, 20, 1e-4, 1e-6, 5.0, 5000, 256, 0.3, 0.2)
    told = dataclasses.astuple(Training())
    assert (*told[:2], *told[4:12], told[12]) == paper
