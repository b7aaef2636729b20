import pytest
import torch

from bertology import hidden_states
from helpers.zoo import BY_NAME, FAMILIES, batch

# oracle: the states that transformers returns.


def reference(model, inputs):
    with torch.no_grad():
        given = {k: v for k, v in inputs.items() if k != "labels"}
        return torch.stack(model(**given, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_equals_transformers(family, kind):
    model, inputs = family.build(kind), batch()
    values = hidden_states(model, inputs).values
    torch.testing.assert_close(values, reference(model, inputs), rtol=0, atol=0)
    assert values.shape == (3, 3, 7, 16)


def test_the_comparison_can_fail():
    model, inputs = BY_NAME["bert"].build(), batch()
    values = hidden_states(model, inputs).values.clone()
    values[1, 0, 0, 0] += 1e-6
    with pytest.raises(AssertionError):
        torch.testing.assert_close(values, reference(model, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_untied_last_state_is_before_the_final_norm(name):
    model, inputs = BY_NAME[name].build(), batch()
    raw = hidden_states(model, inputs, tie_last_hidden_states=False).values
    tied = hidden_states(model, inputs).values
    norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
    assert not torch.allclose(raw[-1], tied[-1])
    torch.testing.assert_close(norm(raw[-1]), tied[-1])
    torch.testing.assert_close(raw[:-1], tied[:-1], rtol=0, atol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in ("gpt2", "llama")], ids=lambda f: f.name)
def test_without_final_norm_tying_changes_nothing(family):
    model, inputs = family.build(), batch()
    raw = hidden_states(model, inputs, tie_last_hidden_states=False).values
    torch.testing.assert_close(raw, hidden_states(model, inputs).values, rtol=0, atol=0)


def test_mask_and_printing():
    states = hidden_states(BY_NAME["bert"].build(), batch((3, 2)))
    assert states.mask.tolist() == [[True, True, True], [True, True, False]]
    assert repr(states) == "HiddenStates(stacks={encoder: [3, 2, 3, 16]}, masks={encoder: [2, 3]})"
    assert not states.values.requires_grad
