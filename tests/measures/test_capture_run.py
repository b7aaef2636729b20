"""One pass that all readers share."""

import torch

from bertology import capture, head_importance, head_outputs, hidden_states
from bertology.measures import capture_run
from helpers.zoo import BY_NAME, batch

# oracle: the single functions, each with a pass of its own.


def test_one_pass_is_run_once(monkeypatch):
    runs = []
    run = capture_run.run_model
    monkeypatch.setattr(capture_run, "run_model", lambda *a, **k: runs.append(1) or run(*a, **k))
    model, inputs = BY_NAME["bert"].build(attention="eager"), batch()
    found = capture(model, inputs, hidden=True, maps=True, heads=True, loss="auto")
    assert len(runs) == 1
    assert found.heads == head_outputs(model, inputs, loss="auto")
    assert found.hidden == hidden_states(model, inputs)
    gates = (found.heads.values * found.heads.gradients).sum((2, 4)).abs().mean(1)
    torch.testing.assert_close(gates, head_importance(model, inputs).scores)
