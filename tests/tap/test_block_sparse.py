"""BigBird and BigBird-Pegasus, which replace their attention by full attention when a text is short."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
import transformers as tf
from torch import Tensor

from bertology import (
    ablated,
    accumulate,
    attention_entropy,
    attention_maps,
    check_anatomy,
    dissect,
    head_ablation,
    head_importance,
    tap,
)
from bertology.errors import UnknownAnatomy
from bertology.measures.entropy import EntropyAccumulator

SMALL: dict[str, Any] = {"vocab_size": 50, "block_size": 4, "num_random_blocks": 2, "attention_type": "block_sparse"}
# Block-sparse attention is for more than (5 + 2 * num_random_blocks) * block_size tokens.
SHORT, LONG = 22, 49


def big_bird(kind: str = "BigBirdForSequenceClassification") -> Any:
    torch.manual_seed(0)
    config = tf.BigBirdConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, max_position_embeddings=64,
        initializer_range=0.3, **SMALL,
    )  # fmt: skip
    return getattr(tf, kind)(config).eval()


def pegasus() -> Any:
    torch.manual_seed(0)
    config = tf.BigBirdPegasusConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, init_std=0.3,
        eos_token_id=2, **SMALL,
    )  # fmt: skip
    return tf.BigBirdPegasusForSequenceClassification(config).eval()


MODELS = {"big_bird": big_bird, "bigbird_pegasus": pegasus}


def text(tokens: int, name: str = "big_bird", seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (3, tokens), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = 2  # the end of a text, which BigBird-Pegasus classifies
    ids[:, :-1] = ids[:, :-1].clamp_min(5)
    mask = torch.ones_like(ids)
    if tokens == SHORT:  # where blocks are sparse, what padding follows a text changes what it reads
        mask[0, -3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0])}
    return inputs if name == "big_bird" else inputs | {"decoder_input_ids": ids.roll(1, 1)}


def full(model: Any) -> Any:
    """The same model with full attention from the start."""
    config = type(model.config)(**{**model.config.to_dict(), "attention_type": "original_full"})
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("name", MODELS)
def test_the_first_maps_of_short_texts_are_those_of_full_attention(name):
    model = MODELS[name]()
    wanted = attention_maps(full(model), text(SHORT, name)).stacks
    found = attention_maps(model, text(SHORT, name)).stacks
    assert found.keys() == wanted.keys()
    for stack in found:
        torch.testing.assert_close(found[stack], wanted[stack])
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found[stack], wanted[stack].flip(2))
    torch.testing.assert_close(attention_maps(model, text(SHORT, name)).stacks, found)


CALLS: dict[str, Any] = {
    "entropy": lambda model, inputs: attention_entropy(model, inputs).mean,
    "importance": lambda model, inputs: head_importance(model, inputs).scores,
    "ablation": lambda model, inputs: head_ablation(model, inputs, metric="inverse_loss").loss_change,
    "check": lambda model, inputs: torch.zeros(1) if check_anatomy(model, inputs) is None else None,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("measure", CALLS)
def test_every_first_call_is_right(name, measure):
    model, call, inputs = MODELS[name](), CALLS[measure], text(SHORT, name)
    wanted = call(full(model), inputs)
    assert not wanted.isnan().any()
    torch.testing.assert_close(call(model, inputs), wanted, rtol=1e-4, atol=1e-5)


def test_a_long_text_is_read_as_if_it_came_first():
    alone = head_importance(big_bird(), [text(LONG)]).scores
    both = head_importance(big_bird(), [text(SHORT), text(LONG)])
    first = head_importance(big_bird(), [text(SHORT)]).scores
    torch.testing.assert_close(both.scores, (alone + first) / 2)
    after = full(big_bird())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(alone, head_importance(after, [text(LONG)]).scores)


@pytest.mark.parametrize("name", MODELS)
def test_maps_of_long_texts_are_refused_and_gates_work(name):
    model = MODELS[name]()
    # Its own maps leave out what it spends on the first block when it reads it again.
    with torch.no_grad():
        own = model(**text(LONG, name), output_attentions=True)
    maps = own.attentions if name == "big_bird" else own.encoder_attentions
    if maps:
        assert (maps[0][1].sum(-1) < 0.99).any()
    for call in (attention_maps, attention_entropy):
        with pytest.raises(UnknownAnatomy, match="is block-sparse for a text of this length"):
            call(model, text(LONG, name))
    with torch.no_grad(), ablated(model, {0: [1]}):
        silent = model(**text(LONG, name)).logits
    dissect(model).sites[0].projection.weight.data[:, 4:8] = 0
    with torch.no_grad():
        torch.testing.assert_close(silent, model(**text(LONG, name)).logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_and_the_random_states_are_as_the_models_own_passes_leave_them(name):
    model, same = MODELS[name](), MODELS[name]()
    with torch.no_grad():
        same.train()(**text(SHORT, name))
    numpy.random.seed(3)
    before = numpy.random.get_state()[1].copy()
    torch_before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), tap(model, "heads", read=stop):
        accumulate(model, [text(LONG, name)], EntropyAccumulator())
    assert (numpy.random.get_state()[1] == before).all()
    accumulate(model.train(), [text(SHORT, name)], EntropyAccumulator())
    assert (numpy.random.get_state()[1] == before).all()
    assert torch.equal(torch.get_rng_state(), torch_before)
    kinds = [[(type(module), module.training) for module in one.modules()] for one in (model, same)]
    assert kinds[0] == kinds[1]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def stop(*_: Any) -> None:
    raise RuntimeError("stop")
