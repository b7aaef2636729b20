"""What tests of trained probes share."""

import torch

from bertology.edge_probing.optimizer import Training
from bertology.edge_probing.probe_layers import (
    cumulative_probes,
    probe_layers,
)
from helpers.edge_sources import random_source

QUICK = Training(lr=3e-3, batch_size=8, validate_every=5, max_validations=6, width=6)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def some_probes(source, seeds=(0,), settings=QUICK):
    return cumulative_probes(source, seeds, settings).double()


# Going on


class CutOff(Exception):
    pass


class Failing:
    """A source that fails at some batch."""

    def __init__(self, source, after):
        self._source, self._left = source, after

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, records):
        if self._left == 0:
            raise CutOff
        self._left -= 1
        return self._source.batch(records)


def trained_scores(**options):
    train, dev = random_source(30), random_source(12, seed=1)
    return probe_layers(train, dev, settings=QUICK, **options), train, dev
