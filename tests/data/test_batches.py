import pytest
import torch
from transformers import BatchEncoding

from bertology import attention_entropy, head_importance, hidden_states
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
