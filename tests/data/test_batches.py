import pytest
import torch
from transformers import BatchEncoding, BertModel, RobertaModel

from bertology import attention_entropy, attention_maps, head_ablation, head_importance, hidden_states, score
from bertology.data.batches import token_mask
from bertology.errors import DataError
from helpers.zoo import BY_NAME, batch


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches: wanted one mapping of model arguments or an iterable of them, got an empty one"),
        ([{}], "a batch needs input_ids or inputs_embeds, got no keys at all"),
        ([{"attention_mask": torch.ones(1, 2), "labels": None}], "a batch needs input_ids or inputs_embeds, got attention_mask, labels"),
        ([{"input_ids": [[1, 2]]}], "input_ids must be a tensor, got list: call the tokenizer with return_tensors='pt'"),
        ([{"input_ids": torch.zeros(0, 3).long()}], r"input_ids is empty: its shape is \[0, 3\]"),
        ([[torch.ones(2, 2)]], "a batch must be a mapping of model arguments such as a tokenizer returns, got list"),
        (torch.ones(2, 3).long(), r"returns, got Tensor: pass \{'input_ids': x\}, if x is this tensor of token ids"),
    ],
)  # fmt: skip
def test_bad_batches(batches, message):
    for measure in (attention_entropy, head_importance):
        with pytest.raises(DataError, match=message):
            measure(BY_NAME["bert"].build(), batches)


def test_captures_check_their_batch():
    with pytest.raises(DataError, match="a batch needs input_ids or inputs_embeds, got labels"):
        hidden_states(BY_NAME["bert"].build(), {"labels": torch.ones(1)})


def test_what_tokenizers_and_loaders_give():
    model, inputs = BY_NAME["bert"].build(), batch()
    expected = attention_entropy(model, inputs).mean
    rows = [{k: v[i] for k, v in inputs.items()} for i in range(3)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    for same in (BatchEncoding(inputs), [BatchEncoding(inputs)], loader, (b for b in [inputs])):
        torch.testing.assert_close(attention_entropy(model, same).mean, expected)


def test_embeddings_instead_of_ids():
    model, inputs = BY_NAME["bert"].build(), batch((5, 5), labels=False)
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    torch.testing.assert_close(attention_entropy(model, embedded).mean, attention_entropy(model, inputs).mean)


def test_token_masks():
    model, inputs = BY_NAME["bert"].build(), batch((2, 1))
    assert token_mask(model, inputs).tolist() == [[True, True], [True, False]]
    del inputs["attention_mask"]
    assert token_mask(model, inputs).all()
    with pytest.raises(DataError, match=r"attention_mask must be \[batch, token\], got \[2, 1, 2, 2\]"):
        token_mask(model, {**inputs, "attention_mask": torch.ones(2, 1, 2, 2)})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_packed_texts_are_kept_apart_or_refused(name):
    """transformers keeps them apart in a pass without a cache alone."""
    model, ids = BY_NAME[name].build("lm"), torch.randint(5, 40, (1, 7), generator=torch.Generator().manual_seed(0))
    packed = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), "labels": ids}
    for measure in (attention_entropy, head_importance, attention_maps):
        with pytest.raises(DataError, match="position_ids do not go up by 1 .* use_cache=False in the batch"):
            measure(model, packed)
    apart = packed | {"use_cache": False}
    with torch.no_grad():
        loss = float(model(**apart).loss)
    assert not attention_maps(model, apart).values[..., 4:, :4].any()
    assert head_ablation(model, apart, metric="inverse_loss").base_losses.tolist() == pytest.approx([loss], rel=1e-5)
    assert 1 / score(model, apart, metric="inverse_loss").value == pytest.approx(loss, rel=1e-5)
    one = packed | {"position_ids": torch.arange(7)[None]}
    assert attention_maps(model, one).values[..., 4:, :4].any()


@pytest.mark.parametrize("kind", [RobertaModel, BertModel])
def test_encoders_take_any_positions(kind):
    """They never keep texts apart, with a cache or without."""
    model, ids = kind(BY_NAME["roberta"].config()).eval(), torch.arange(5, 12)[None]
    given = {"input_ids": ids, "position_ids": torch.tensor([[2, 4, 6, 8, 2, 3, 4]])}
    with torch.no_grad():
        states = model(**given).last_hidden_state
    assert torch.allclose(hidden_states(model, given).values[-1], states, atol=1e-6)
    assert attention_maps(model, given).values[..., 4:, :4].all()


def test_positions_that_the_model_does_not_have_are_the_models_own_error():
    given = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "position_ids": torch.tensor([[0, 1, 2, 99]])}
    with pytest.raises(DataError, match=r"position_ids must be from 0 to 31, got 99"):
        hidden_states(BY_NAME["gpt2"].build(), given)
