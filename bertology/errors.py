"""The errors that this library raises.

    BertologyError
    ├── UnknownAnatomy        no attention heads were found in the model, or they ran elsewhere than expected
    ├── HeadError             the model does not have this head or layer, or it was pruned before
    ├── ShapeError            a tensor has the wrong shape, or holds NaN
    ├── DataError             a batch, a data set, a label or a file cannot be used
    ├── LossError             no loss is known for the model, or a loss is not one finite value per example
    ├── PruningError          the heads cannot be removed from this model
    └── MissingExtra          an optional package is not installed

    UnmeasuredAttention       a warning: some attention of the model has no rows in results

Every message says what was wanted, what came, and what to do.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class BertologyError(Exception):
    """Any error that this library raises on purpose."""


class UnknownAnatomy(BertologyError, TypeError):
    """No attention heads were found in the model, or they ran elsewhere than expected."""


class UnmeasuredAttention(UserWarning):
    """Some modules of a model look like attention but have no rows in results: `dissect(model).unmeasured` says why.

    It comes once for each model. To silence it: `warnings.simplefilter("ignore", UnmeasuredAttention)`.
    """


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
    """Import an optional module. Raises `MissingExtra`, which names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {module.split('.')[0]!r}, which is not installed: pip install 'bertology[{extra}]'"
        ) from error
