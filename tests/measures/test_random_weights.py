import copy

import pytest
import torch
import transformers

from bertology import prune_heads
from bertology.errors import DataError
from bertology.measures.random_weights import randomized
from bertology.syntax import align
from bertology.syntax.attention_probe import (
    attention_probe,
)
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME

# oracle: the names of the parameters: all but those of embeddings change.

# The control


def test_all_but_embeddings_is_drawn_anew(family):
    model = family.build().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)  # norms and biases too are not as they began
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    new, again, other = randomized(model), randomized(model), randomized(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    embeddings = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    assert len(embeddings) >= (1 if family.name == "llama" else 2)
    for name, parameter in new.named_parameters():
        stays = name.rpartition(".")[0] in embeddings
        assert torch.equal(parameter, before[name]) == stays, name
        assert torch.equal(parameter, again.state_dict()[name])
        if parameter.dim() > 1 and not stays:
            assert not (parameter == before[name]).any()
            assert not torch.equal(parameter, other.state_dict()[name])
        assert parameter.dtype == before[name].dtype
    assert new.training
    assert new.config.to_dict() == model.config.to_dict()


def test_what_is_tied_to_embeddings_stays():
    model = BY_NAME["bert"].build("lm")
    new = randomized(model)
    assert new.cls.predictions.decoder.weight is new.bert.embeddings.word_embeddings.weight
    assert torch.equal(new.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


def test_pruned_models_stay_pruned():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    prune_heads(model, {0: [1, 2]})
    found = attention_probe(randomized(model), batches, batches, vectors="embeddings")
    assert found.from_head.isnan().tolist() == [[False, True, True, False], [False] * 4]


def test_weights_loaded_from_a_file_are_drawn_anew(tmp_path):
    """transformers marks what it loads as not to be touched."""
    BY_NAME["bert"].build("lm").save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    new = randomized(model)
    assert not torch.equal(
        new.encoder.layer[1].attention.self.query.weight, model.encoder.layer[1].attention.self.query.weight
    )


def test_models_whose_beginning_is_not_known():
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.top, self.own = BY_NAME["bert"].build(), torch.nn.Linear(2, 2), None

    around = Around()
    assert not (randomized(around).top.weight == around.top.weight).any()
    around.own = torch.nn.Parameter(torch.randn(3))
    with pytest.raises(DataError, match=r"Around does not say how own begins: pass the part of the model"):
        randomized(around)
    with pytest.raises(DataError, match="Linear is no model of transformers: how its weights begin is not known"):
        randomized(torch.nn.Linear(2, 2))
