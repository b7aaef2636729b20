import pytest
import torch

from bertology import mlp_ablation
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch, each_alone


def losses_without(model, inputs, module):
    """Oracle: the loss of each example, where a hook of ours returns zeros for this module."""
    hook = module.register_forward_hook(lambda m, args, out: out * 0) if module is not None else None
    with torch.no_grad():
        losses = [model(**example).loss.item() for example in each_alone(inputs)]
    if hook is not None:
        hook.remove()
    return torch.tensor(losses, dtype=torch.float64)


# oracle: a hook that returns zeros in the place of the MLP
@pytest.mark.parametrize(
    ("name", "path"), [("bert", "bert.encoder.layer.{}.output.dense"), ("gpt2", "transformer.h.{}.mlp")]
)
def test_without_each_mlp(name, path):
    model, inputs = BY_NAME[name].build(), batch()
    found = mlp_ablation(model, inputs, metric="inverse_loss")
    whole = losses_without(model, inputs, None)
    for row in range(2):
        apart = losses_without(model, inputs, model.get_submodule(path.format(row))) - whole
        assert found.loss_change[row].item() == pytest.approx(apart.mean().item(), rel=1e-9)
        assert found.loss_stderr[row].item() == pytest.approx(apart.std().item() / 3**0.5, rel=1e-9)
        expected = 1 / (whole + apart).mean() - 1 / whole.mean()
        assert found.change[row].item() == pytest.approx(expected.item(), rel=1e-9)
    assert (found.base_loss, found.part, found.examples) == (pytest.approx(whole.mean().item()), "mlp", 3)


def test_it_is_gone_over_several_times():
    with pytest.raises(DataError, match="goes over the batches several times"):
        mlp_ablation(BY_NAME["bert"].build(), (batch() for _ in range(2)), metric="accuracy")


def test_one_example_has_no_standard_error(tmp_path):
    found = mlp_ablation(BY_NAME["bert"].build(), batch((5,)), metric="accuracy")
    assert found.loss_stderr.isinf().all()
    found.save(tmp_path / "a")
    assert type(found).load(tmp_path / "a") == found
