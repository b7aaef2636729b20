import itertools

import pytest
import torch

from bertology import accumulate, block_influence
from bertology.measures.block_influence import BlockInfluenceAccumulator
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch, each_alone


def by_hand(model, inputs):
    """Oracle: transformers' own hidden states, token by token (Men et al. 2024, BI = 1 - E cos)."""
    cosines = []
    for example in each_alone(inputs):
        example.pop("labels")
        with torch.no_grad():
            states = model(**example, output_hidden_states=True).hidden_states
        for token in range(states[0].shape[1]):
            pairs = itertools.pairwise(states)
            cosines.append(
                [float(x[0, token] @ y[0, token] / (x[0, token].norm() * y[0, token].norm())) for x, y in pairs]
            )
    return torch.tensor(cosines, dtype=torch.float64)


# oracle: transformers' hidden states, in loops
@pytest.mark.parametrize("name", ["bert", "distilbert", "albert"])
def test_equals_the_slow_twin(name):
    model, inputs = BY_NAME[name].build(), batch()
    found, expected = block_influence(model, inputs), by_hand(model, inputs)
    torch.testing.assert_close(found.influence, 1 - expected.mean(0))
    torch.testing.assert_close(found.std, expected.std(0, correction=0))
    assert found.tokens.tolist() == [16, 16]
    assert not torch.allclose(found.influence, 1 - expected[:4].mean(0))  # it can fail


def test_batches_and_padding_do_not_matter():
    model, inputs = BY_NAME["llama"].build(), batch()
    one = block_influence(model, inputs)
    torch.testing.assert_close(
        one.influence, block_influence(model, each_alone(inputs)).influence, rtol=1e-5, atol=1e-8
    )


def test_a_block_that_does_nothing_has_no_influence():
    model = BY_NAME["gpt2"].build()
    for part in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    influence = block_influence(model, batch()).influence
    assert influence[1].abs() < 1e-12
    assert influence[0] > 1e-3


def test_stacks_of_encoder_decoders(tmp_path):
    model, ids = seq2seq("bart"), torch.randint(3, 40, (2, 5))
    found = block_influence(model, {"input_ids": ids, "decoder_input_ids": ids[:, :3]})
    assert found.labels == ("encoder.0", "encoder.1", "decoder.0", "decoder.1")
    assert found.tokens.tolist() == [10, 10, 6, 6]
    found.save(tmp_path / "i")
    assert type(found).load(tmp_path / "i") == found
    assert found.stack("decoder").influence.tolist() == found.influence[2:].tolist()


def test_in_one_pass_with_others():
    model, inputs = BY_NAME["bert"].build(), batch()
    (found, again) = accumulate(model, inputs, BlockInfluenceAccumulator(), BlockInfluenceAccumulator())
    assert found == again == block_influence(model, inputs)


def test_a_block_is_compared_with_what_it_gets():
    """What comes between two blocks is of neither of them."""
    model, inputs, seen = BY_NAME["gpt2"].build(), batch((5,)), []
    block = model.transformer.h[1]
    expected = block_influence(model, inputs).influence[0]
    block.register_forward_pre_hook(lambda module, args: (args[0] + torch.linspace(-1, 1, 16), *args[1:]))
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    block.register_forward_hook(lambda module, args, x: seen.append(x if isinstance(x, torch.Tensor) else x[0]))
    with torch.no_grad():
        model(**inputs)
    found, (before, after) = block_influence(model, inputs).influence, seen[:2]
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], (1 - torch.cosine_similarity(before, after, dim=-1)).mean())
