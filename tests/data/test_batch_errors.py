"""Batches that a model does not run on: the cause is found in the batch, another error of a library is told with it, and those of the user's code stay."""

import pytest
import torch
import transformers

import bertology as b
from bertology.data.batch_errors import explained
from bertology.errors import DataError
from helpers.small_models import small_t5


def roberta():
    own = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.RobertaConfig(**own, intermediate_size=24, max_position_embeddings=14, pad_token_id=1)
    return transformers.RobertaModel(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=12)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("model", [roberta(), gpt2()], ids=["roberta", "gpt2"])
@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"input_ids": torch.tensor([[5, 50]])}, "token 50, but the model has 50 tokens, from 0 to 49"),
        ({"input_ids": torch.tensor([[5, -3]])}, "token -3, but the model has 50 tokens"),
        ({"input_ids": torch.full((2, 13), 7)}, "a text has 13 tokens, the model takes 12: .*max_length=12"),
        ({"input_ids": torch.rand(1, 4)}, "input_ids must hold whole numbers of type int64, got float32"),
    ],
)
def test_what_is_wrong_with_a_batch(model, batch, words):
    for measure in (b.hidden_states, b.attention_maps, b.attention_entropy):
        with pytest.raises(DataError, match=words):
            measure(model, batch)


def test_a_text_that_just_fits_runs():
    for model in (roberta(), gpt2()):
        assert b.attention_entropy(model, {"input_ids": torch.full((2, 12), 7)}).queries.tolist() == [24, 24]


def test_tokens_of_a_decoder():
    model, ids = small_t5(), torch.tensor([[5, 6, 7]])
    with pytest.raises(DataError, match="decoder_input_ids holds the token 40, but the model has 40 tokens"):
        b.attention_maps(model, {"input_ids": ids, "decoder_input_ids": ids + 35})


def test_an_argument_that_a_model_does_not_take():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = roberta()

        def forward(self, input_ids):
            return self.inner(input_ids)

    batch = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2).long()}
    with pytest.raises(DataError, match="takes no attention_mask: it takes input_ids"):
        b.attention_maps(Own(), batch)


def test_errors_of_the_model_itself_stay():
    class Broken(Exception):
        pass

    model, batch = roberta(), {"input_ids": torch.tensor([[5, 6]])}
    for error in (Broken("own"), RuntimeError("own"), IndexError("own")):
        with pytest.raises(type(error), match="own"), explained(model, batch):
            raise error
    with pytest.raises(Broken), explained(model, {"input_ids": torch.tensor([[5, 600]])}):
        raise Broken  # a batch that is wrong, too, does not hide it


def test_errors_of_a_model_without_a_known_cause_tell_what_the_batch_holds():
    """Landmarks, of which there must be as many as the text can be divided into."""
    own = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.NystromformerConfig(**own, intermediate_size=24, segment_means_seq_len=16, num_landmarks=8)
    model, ids = transformers.NystromformerModel(config).eval(), torch.randint(3, 50, (2, 13))
    for measure in (b.hidden_states, b.head_outputs, b.head_means):
        with pytest.raises(
            DataError, match=r"does not run on this batch, which holds input_ids \[2, 13\] int64"
        ) as told:
            measure(model, {"input_ids": ids})
        assert isinstance(told.value.__cause__, RuntimeError)


@pytest.mark.parametrize("raised", [RuntimeError, ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_errors_of_the_users_own_hooks_stay(raised):
    def stop(*_):
        raise raised("own")

    model = gpt2()
    handle = model.transformer.h[1].register_forward_hook(stop)
    with pytest.raises(raised, match="own"):
        b.hidden_states(model, {"input_ids": torch.tensor([[5, 6]])})
    handle.remove()


def test_an_encoder_decoder_without_a_target():
    with pytest.raises(DataError, match="needs decoder_input_ids, or labels"):
        b.hidden_states(small_t5(), {"input_ids": torch.tensor([[5, 6]])})
