"""Hard concrete gates are those of the paper, and training resumes where it was interrupted."""

import pytest
import torch

from bertology import fit_gates
from bertology.errors import DataError
from bertology.importance import gate_training
from bertology.streaming import checkpoint
from helpers.ablation import several
from helpers.zoo import BY_NAME
from oracles.gates import hard_concrete


def test_gates_of_draws():
    draws = torch.rand(500, generator=torch.Generator().manual_seed(0)).double()
    for logit in (-1.0, 0.0, 2.0):
        found = gate_training.sampled(torch.tensor(logit).double(), draws)
        torch.testing.assert_close(found, torch.tensor([hard_concrete(logit, u) for u in draws.tolist()]).double())
    assert (found > 0).double().mean() == pytest.approx(
        gate_training.open_probability(torch.tensor(2.0)).item(), abs=0.03
    )


def test_closed_forms():
    zero = torch.zeros(())
    assert gate_training.open_probability(zero).item() == pytest.approx(0.68811, abs=1e-5)
    assert gate_training.gates_of(zero, "l0").item() == pytest.approx(0.5)
    assert gate_training.gates_of(zero + 9, "l0").item() == 1
    assert gate_training.gates_of(zero - 9, "l0").item() == 0
    assert gate_training.gates_of(zero + 1, "soft").item() == pytest.approx(0.731059, abs=1e-6)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["l0", "soft"])
def test_training_resumes(method, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0)
    model, batches = BY_NAME["bert"].build(), several()
    options = {"method": method, "steps": 6, "seeds": (1, 2)}
    whole = fit_gates(model, batches, **options)
    take, left = gate_training.GateTraining._take_step, [9]

    def interrupted(training):
        if not left[0]:
            raise Interrupted
        left[0] -= 1
        take(training)

    monkeypatch.setattr(gate_training.GateTraining, "_take_step", interrupted)
    file = tmp_path / "gates"
    with pytest.raises(Interrupted):
        fit_gates(model, batches, checkpoint=file, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gates.0", "gates.1"]
    with pytest.raises(DataError, match="is of another model, other data or other settings"):
        fit_gates(model, batches[:2], checkpoint=file, **options)
    left[0] = 24 - 9 if method == "soft" else 12 - 9  # no step is taken twice
    assert fit_gates(model, batches, checkpoint=file, **options) == whole
    assert not list(tmp_path.iterdir())
