"""What can go wrong, and which error says so?

    BertologyError
    ├── UnknownAnatomy        no attention heads were found in the model, or not where they should be
    ├── HeadError             a head or layer that the model does not have, or no longer has
    ├── ShapeError            a tensor of the wrong shape, or with values that mean nothing (NaN)
    ├── DataError             a batch, a data set, a label or a file that cannot be used
    ├── LossError             no loss is known for the model, or a loss is not one finite value per example
    ├── PruningError          a head that cannot be cut out of this model
    └── MissingExtra          an optional package is not installed

Every message says what was wanted, what came, and what to do.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class BertologyError(Exception):
    """Any error that this library raises on purpose."""


class UnknownAnatomy(BertologyError, TypeError):
    """The model has no attention heads that the library can find, or they did not run where they were expected."""


class HeadError(BertologyError, IndexError):
    """A head or layer is out of range, or was pruned before."""


class ShapeError(BertologyError, ValueError):
    """A tensor has the wrong shape, or holds NaN."""


class DataError(BertologyError, ValueError):
    """A batch, a data set, a label or a file cannot be used as it is."""


class LossError(BertologyError, ValueError):
    """No loss is known for this model, or a loss is not one finite value per example."""


class PruningError(BertologyError, ValueError):
    """The heads cannot be removed from this model; it was left as it was."""


class MissingExtra(BertologyError, ImportError):
    """An optional package is not installed."""


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or raise `MissingExtra` with the name of the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {module.split('.')[0]!r}, which is not installed: pip install 'bertology[{extra}]'"
        ) from error
