"""`import bertology` costs no more than importing torch and transformers: no slow module that neither needs."""

import subprocess
import sys
from collections.abc import Iterable

import pytest

SLOW = (
    "accelerate", "conllu", "datasets", "IPython", "matplotlib", "networkx", "pandas", "peft", "sacrebleu", "scipy",
    "sklearn", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "tree_sitter",
    "transformers.generation", "transformers.masking_utils", "transformers.modeling_utils", "transformers.models",
    "transformers.quantizers", "transformers.tokenization_utils_base", "transformers.trainer",
)  # fmt: skip
LOADED = "import sys, torch, transformers; before = set(sys.modules); {}; print(*set(sys.modules) - before)"


def slow(modules: Iterable[str]) -> list[str]:
    """Which of these modules are slow to load, or part of a package that is."""
    return sorted(one for one in modules if any(f"{one}.".startswith(f"{name}.") for name in SLOW))


def loaded_by(statement: str) -> list[str]:
    """The modules that a statement loads in a new Python which has torch and transformers."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(statement)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_nothing_slow():
    loaded = loaded_by("import bertology, bertology.syntax, bertology.edge_probing, bertology.code_structure")
    assert "bertology.pruning.load" in loaded  # it is whole
    assert slow(loaded) == []


@pytest.mark.any_transformers
def test_a_slow_module_is_found():
    found = slow(["transformers.modeling_utils", "scipy.stats", "scipyfoo", "transformers.pytorch_utils", "sympy"])
    assert found == ["scipy.stats", "sympy", "transformers.modeling_utils"]
