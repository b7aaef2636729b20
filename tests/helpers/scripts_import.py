"""What most scripts import, for the process of which `helpers.scripts` makes copies."""

from contextlib import suppress

from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel  # noqa: F401

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax

with suppress(ImportError):  # of the extras; a script that needs one that is missing says so itself
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401

__all__ = ["bertology"]
