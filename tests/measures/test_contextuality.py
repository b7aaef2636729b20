"""Cosines of words in their contexts."""

import numpy as np
import pytest
import torch
import transformers

from bertology import Result, contextuality, hidden_states
from bertology.errors import DataError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch, each_alone
from oracles.layer_similarity import mean_cosine

# oracle: cosines pair by pair


def test_equals_the_slow_twin(family):
    model, inputs = family.build(), batch((7, 6, 5))
    words = [int(i) for i in inputs["input_ids"].flatten().bincount()[3:].topk(2).indices + 3]
    found = contextuality(model, inputs, tokens={"one": [words[0]], "two": words})
    states, real = hidden_states(model, inputs, tie_last_hidden_states=False).values, inputs["attention_mask"].bool()
    for layer, x in enumerate(states.double()):
        assert found.anisotropy[layer].item() == pytest.approx(mean_cosine(x[real].numpy()), abs=1e-9)
        for number, ids in enumerate(([words[0]], words)):
            of_word = x[real & torch.isin(inputs["input_ids"], torch.tensor(ids))].numpy()
            expected = mean_cosine(of_word)
            assert found.self_similarity[layer, number].item() == pytest.approx(expected, abs=1e-9)
        cosines = [torch.cosine_similarity(x[b, real[b]], x[b, real[b]].mean(0), dim=-1) for b in range(3)]
        assert found.within_text[layer].item() == pytest.approx(torch.cat(cosines).mean().item(), abs=1e-9)
    assert found.tokens == 18
    assert found.classes == ("one", "two")
    assert found.anisotropy[0].item() != pytest.approx(mean_cosine(states[1][real].numpy()), abs=1e-6)
    torch.testing.assert_close(found.adjusted, found.self_similarity - found.anisotropy[:, None])


def test_padding_and_batching_change_nothing(family):
    model = family.build()
    many, alone = (contextuality(model, x, tokens={"low": list(range(3, 20))}) for x in (batch(), each_alone(batch())))
    np.testing.assert_allclose(many.anisotropy, alone.anisotropy, atol=1e-6)
    np.testing.assert_allclose(many.self_similarity, alone.self_similarity, atol=1e-6)


def test_a_word_without_context_is_like_itself():
    """Without positions, the embeddings of one token are equal."""
    model = BY_NAME["llama"].build()
    found = contextuality(
        model, {"input_ids": torch.tensor([[5, 6, 5, 7], [8, 5, 9, 5]])}, tokens={"five": [5], "x": [30]}
    )
    assert found.self_similarity[0, 0].item() == pytest.approx(1)
    assert found.self_similarity[-1, 0] < 1
    assert found.self_similarity[:, 1].isnan().all()
    assert found.occurrences.tolist() == [4, 0]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # Funnel of transformers 4
def test_errors_and_files(tmp_path):
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError):
        contextuality(model, batch(), tokens={"word": ["a string"]})
    config = transformers.FunnelConfig(
        vocab_size=40, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24, num_decoder_layers=1
    )
    with pytest.raises(UnknownAnatomy, match="layer 2 has 3 tokens, layer 0 has 6: pooled tokens"):
        contextuality(transformers.FunnelBaseModel(config), batch((6, 4), labels=False))
    found = contextuality(model, batch())
    assert found.self_similarity.shape == (3, 0)
    found = contextuality(model, batch(), tokens={"low": list(range(3, 20))})
    found.save(tmp_path / "result")
    assert Result.load(tmp_path / "result") == found
    found.plot(path=tmp_path / "result.png")
