"""Masks and batch axes: what is refused, and what is taken though the padding is not known."""

import pytest
import torch
import transformers

import bertology as b
from bertology.errors import DataError


def bert(kind="BertModel"):
    own = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**own, intermediate_size=24)).eval()


def llama():
    own = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    own |= {"num_key_value_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**own)).eval()


def gemma():
    own = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
    own |= {"num_key_value_heads": 2, "intermediate_size": 24, "sliding_window": 2, "pad_token_id": 0}
    kinds = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**own, layer_types=kinds)).eval()


IDS = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 6, 8]])
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
STATISTICS = [b.attention_entropy, b.attention_patterns, b.head_means, b.repeat_scores]


def test_a_mask_of_four_axes_gives_the_maps_and_states_of_the_same_padding():
    model = llama()
    flat = {"input_ids": IDS, "attention_mask": PADDED}
    allowed = PADDED.bool()[:, None, None, :] & torch.ones(5, 5).tril().bool()
    whole = {"input_ids": IDS, "attention_mask": allowed}
    for capture in (b.attention_maps, b.hidden_states, b.head_outputs):
        wanted, came = capture(model, flat), capture(model, whole)
        real = wanted.mask
        assert came.masks == {}
        with pytest.raises(
            DataError, match=r"not known which tokens are real: the attention mask is not \[batch, token"
        ):
            _ = came.mask
        if capture is not b.attention_maps:
            torch.testing.assert_close(came.values[:, real], wanted.values[:, real])
        else:
            pairs = [x.transpose(2, 3)[:, real] for x in (came.values, wanted.values)]
            torch.testing.assert_close(*pairs)


def test_a_mask_for_each_kind_of_layer_gives_maps():
    model = gemma()
    full = torch.ones(5, 5).tril().bool()
    near = full & ~torch.ones(5, 5).tril(-2).bool()
    masks = {
        "full_attention": full[None, None].expand(2, 1, 5, 5),
        "sliding_attention": near[None, None].expand(2, 1, 5, 5),
    }
    wanted = b.attention_maps(model, {"input_ids": IDS}).values
    came = b.attention_maps(model, {"input_ids": IDS, "attention_mask": masks})
    torch.testing.assert_close(came.values, wanted)
    assert b.hidden_states(model, {"input_ids": IDS, "attention_mask": masks}).values.shape == (3, 2, 5, 16)
    for measure in STATISTICS:
        with pytest.raises(DataError, match="a mask for each of full_attention, sliding_attention"):
            measure(model, {"input_ids": IDS, "attention_mask": masks})


@pytest.mark.parametrize("measure", STATISTICS)
def test_statistics_do_not_guess_padding(measure):
    mask = PADDED.bool()[:, None, None, :].expand(2, 1, 5, 5)
    with pytest.raises(DataError, match=r"attention_mask must be \[batch, token\], got \[2, 1, 5, 5\]"):
        measure(llama(), {"input_ids": IDS, "attention_mask": mask})


@pytest.mark.parametrize("measure", STATISTICS)
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (PADDED * 0, r"marks no real token in example\(s\) \[0, 1\]"),
        (PADDED * torch.tensor([[1], [0]]), r"marks no real token in example\(s\) \[1\]"),
        (PADDED[:, :4], r"must have the shape of input_ids, \[2, 5\], got \[2, 4\]"),
        (PADDED * float("nan"), "holds NaN"),
        ((PADDED - 1) * 1e4, "must be 1 for real tokens and 0 for padding, got -1"),
    ],
)
def test_masks_that_mark_no_padding(measure, mask, words):
    with pytest.raises(DataError, match=words):
        measure(bert(), {"input_ids": IDS, "attention_mask": mask})


def test_a_mask_that_fits_is_taken():
    whole = b.attention_entropy(bert(), {"input_ids": IDS, "attention_mask": PADDED})
    assert whole.queries.tolist() == [8, 8]
    for kind in (torch.bool, torch.float32, torch.int32):
        came = b.attention_entropy(bert(), {"input_ids": IDS, "attention_mask": PADDED.to(kind)})
        torch.testing.assert_close(came.mean, whole.mean)


@pytest.mark.parametrize("measure", [*STATISTICS, b.attention_maps, b.hidden_states])
def test_an_example_without_a_batch_axis(measure):
    example = {"input_ids": IDS[0], "attention_mask": PADDED[0]}
    with pytest.raises(DataError, match=r"input_ids must be \[batch, token\], got \[5\]: make a batch .* x\[None\]"):
        measure(bert(), example)
    measure(bert(), {name: x[None] for name, x in example.items()})  # as it says


@pytest.mark.parametrize("measure", [*STATISTICS, b.attention_maps, b.hidden_states])
@pytest.mark.parametrize("name", ["atention_mask", "attention_masks", "padding_mask", "position_id"])
def test_misspelt_names_are_refused_where_the_model_ignores_them(measure, name):
    for model in (bert(), llama()):
        with pytest.raises(DataError, match=f"takes no {name}: it takes input_ids"):
            measure(model, {"input_ids": IDS, name: PADDED})


def test_names_that_are_not_known_but_like_no_other_are_left_to_the_model():
    whole = b.attention_entropy(llama(), {"input_ids": IDS, "attention_mask": PADDED})
    others = {"special_tokens_mask": PADDED, "idx": IDS[:, 0], "label": IDS[:, 0]}
    came = b.attention_entropy(llama(), {"input_ids": IDS, "attention_mask": PADDED, **others})
    torch.testing.assert_close(came.mean, whole.mean)
