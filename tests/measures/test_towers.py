"""Heads of towers for images and sounds and of torch's own attention, against other ways to the same numbers."""

import copy

import pytest
import torch
from torch import nn

import bertology as b
from bertology.data.images import example_of_each
from bertology.errors import DataError, PruningError, ShapeError, UnknownAnatomy
from helpers.towers import (
    Torch,
    conformer,
    first_tensor,
    images_in_text,
    joined,
    loss,
    qwen2_vl,
    random_weights,
    siglip,
    speech_bert,
    vit_det,
)


def pixels(size, count=3):
    return {"pixel_values": torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))}


def sounds(*shape):
    name = "input_values" if len(shape) == 2 else "input_features"
    return {name: torch.randn(*shape, generator=torch.Generator().manual_seed(2))}


def text():
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


MODELS = {
    "qwen2_vl": (qwen2_vl, lambda: {k: x for k, x in joined(images_in_text()).items() if k != "labels"}),
    "vit_det": (vit_det, lambda: pixels(12)),
    "siglip": (siglip, lambda: pixels(8)),
    "conformer": (conformer, lambda: sounds(2, 100)),
    "speech_bert": (speech_bert, lambda: sounds(2, 9, 10)),
    "torch": (lambda: random_weights(Torch()), text),
    "torch, time first": (lambda: random_weights(Torch(batch_first=False)), text),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    make, inputs = MODELS[name]
    return make(), inputs()


@torch.no_grad()
def output(model, inputs):
    """The output of the model at real positions."""
    found = first_tensor(model(**inputs))
    return found[inputs["attention_mask"].bool()] if isinstance(model, Torch) else found


def without_columns(model, site, head, inputs, factor=0.0):
    """The output with a head's columns of the output projection scaled."""
    columns = site.projection.weight[:, head * site.dim : (head + 1) * site.dim]
    kept = columns.detach().clone()
    try:
        with torch.no_grad():
            columns.mul_(factor)
        return output(model, inputs)
    finally:
        with torch.no_grad():
            columns.copy_(kept)


@each_model
def test_gates_are_columns_of_the_output_projection(name):
    model, inputs = made(name)
    anatomy = b.dissect(model)
    assert not anatomy.unmeasured
    bare = output(model, inputs)
    for site in anatomy.sites:
        for head, gate in ((0, 0.0), (site.width - 1, 0.3)):
            gates = torch.ones(anatomy.layers, anatomy.heads)
            gates[site.row, head] = gate
            expected = without_columns(model, site, head, inputs, gate)
            with b.gated(model, gates):
                found = output(model, inputs)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert (found - bare).abs().max() > 1e-4, f"head {head} of {site} has no effect"
    torch.testing.assert_close(output(model, inputs), bare, rtol=0, atol=0)


@each_model
def test_the_heads_are_proved(name):
    model, inputs = made(name)
    b.check_anatomy(model, inputs)


@each_model
def test_importance_is_the_difference_of_losses(name):
    model, inputs = made(name)
    model, inputs = model.double(), {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
    anatomy = b.dissect(model)
    found = b.head_importance(model, inputs, loss=loss).scores
    for site in anatomy.sites:
        head = site.width - 1
        losses = []
        for factor in (1 + 1e-3, 1 - 1e-3):
            columns = slice(head * site.dim, (head + 1) * site.dim)
            other = copy.deepcopy(model)
            with torch.no_grad():
                b.dissect(other).sites[site.row].projection.weight[:, columns] *= factor
                # The padded rows of torch's fast path are 0, and otherwise no one's.
                with b.gated(other, torch.ones(anatomy.layers, anatomy.heads)):
                    losses.append(loss(other(**inputs), inputs))
        expected = ((losses[0] - losses[1]) / 2e-3).abs().mean()
        assert found[site.row, head] == pytest.approx(expected.item(), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["conformer", "speech_bert", "siglip"])
def test_maps_are_those_of_transformers(name):
    make, inputs = MODELS[name][0], MODELS[name][1]()
    with torch.no_grad():
        expected = make(attn_implementation="eager")(**inputs, output_attentions=True).attentions
    found = b.attention_maps(make(), inputs).stacks["encoder"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_maps_of_a_pooling_head_are_those_of_torch():
    model, inputs = made("siglip")
    seen = []
    attention = b.dissect(model).sites[-1].attention
    hook = attention.register_forward_pre_hook(lambda module, args: seen.append(args))
    maps = b.attention_maps(model, inputs)
    hook.remove()
    with torch.no_grad():
        _, expected = attention(*seen[0], average_attn_weights=False)
    torch.testing.assert_close(maps.stacks["head"][0], expected)
    assert maps.stacks["head"].shape == (1, 3, 4, 1, 4)
    entropy = b.attention_entropy(model, inputs).mean[-1]
    torch.testing.assert_close(entropy, torch.special.entr(expected.double()).sum(-1).mean((0, 2)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["torch", "torch, time first"])
def test_maps_of_a_torch_encoder_are_those_of_its_first_layer_by_itself(name):
    model, inputs = made(name)
    layer = model.encoder.layers[0].self_attn
    x = model.embed(inputs["input_ids"])
    x = x if layer.batch_first else x.transpose(0, 1)
    with torch.no_grad():
        _, expected = layer(x, x, x, key_padding_mask=inputs["attention_mask"] == 0, average_attn_weights=False)
    found = b.attention_maps(model, inputs).values[0]
    torch.testing.assert_close(found, expected)
    assert (found[1, :, :, 5:] == 0).all()


@torch.no_grad()
def test_maps_of_images_in_one_row_are_those_of_each_image():
    examples = images_in_text()
    model = qwen2_vl()
    found = b.attention_maps(model, joined(examples))
    maps = found.stacks["encoder"][:, :, :3]  # the text has a fourth head
    assert maps.shape == (2, 1, 3, 32, 32)
    assert found.masks["encoder"].all()
    alone = [b.attention_maps(model, one).stacks["encoder"][:, :, :3] for one in examples]
    expected = torch.zeros(2, 1, 3, 32, 32)
    expected[..., :24, :24], expected[..., 24:, 24:] = alone
    torch.testing.assert_close(maps, expected)
    assert (expected[..., :8, 8:24] == 0).all()  # two images of one example
    # The first layer's map of one image, by the weights themselves.
    site, state = b.dissect(model).sites[0], b.hidden_states(model, examples[1]).stacks["encoder"][0, 0]
    seen = []
    hook = site.attention.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model(**examples[1])
    hook.remove()
    block = model.model.visual.blocks[0]
    q, k, _ = site.query(block.norm1(state)).unflatten(-1, (3, 3, 8)).unbind(1)
    cos, sin = (x[:, None] for x in seen[0]["position_embeddings"])
    turned = [x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (q, k)]
    by_hand = torch.einsum("qhd,khd->hqk", *turned).div(8**0.5).softmax(-1)
    torch.testing.assert_close(alone[1][0, 0], by_hand, rtol=1e-4, atol=1e-5)


def test_entropy_of_images_in_one_row():
    examples = images_in_text()
    model = qwen2_vl()
    found = b.attention_entropy(model, joined(examples))
    maps = b.attention_maps(model, joined(examples)).stacks["encoder"][:, :, :3].double()
    torch.testing.assert_close(found.mean[:2, :3], torch.special.entr(maps).sum(-1).mean((1, 3)), rtol=1e-5, atol=0)
    in_blocks = b.attention_entropy(model, joined(examples), rows=3)
    torch.testing.assert_close(in_blocks.mean, found.mean, equal_nan=True)


def test_each_example_has_its_own_gates_on_images_in_one_row():
    examples = images_in_text()
    model = qwen2_vl()
    together = b.head_importance(model, joined(examples))
    alone = [b.head_importance(model, one).scores for one in examples]
    assert (together.scores[b.dissect(model).present] > 0).all()
    torch.testing.assert_close(together.scores, (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-7, equal_nan=True)
    gates = torch.ones(4, 2, 4)
    gates[0, 1, 2] = 0
    with torch.no_grad(), b.gated(model, gates):
        logits = model(**joined(examples)).logits
    bare = model(**joined(examples)).logits
    torch.testing.assert_close(logits[0], bare[0])
    with torch.no_grad(), b.ablated(model, [(0, 2)]):
        torch.testing.assert_close(logits[1:], model(**examples[1]).logits)


def test_ablation_with_images_in_one_row():
    examples = images_in_text()
    model = qwen2_vl()
    together = b.head_ablation(model, joined([*examples, examples[0]]), metric="inverse_loss").losses
    alone = [b.head_ablation(model, one, metric="inverse_loss").losses for one in examples]
    expected = torch.cat([*alone, alone[0]], -1)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=0, equal_nan=True)


def test_whose_images_they_are_is_not_known_without_placeholders():
    model, inputs = qwen2_vl(), joined(images_in_text())
    assert example_of_each(model, inputs, 32).tolist() == [0] * 24 + [1] * 8
    model.config.image_token_id = 55
    assert example_of_each(model, inputs, 32) is None
    with (
        pytest.raises(ShapeError, match="gates are for a batch of 2, the model runs on 1 row.* one example at a time"),
        b.gated(model, torch.ones(4, 2, 4)),
    ):
        model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])


def test_what_needs_rows_of_tokens_is_refused():
    model, inputs = made("vit_det")
    with pytest.raises(UnknownAnatomy, match=r"block 0 .* passes on \[3, 16, 3, 3\], wanted \[batch, token, hidden\]"):
        b.hidden_states(model, inputs)
    with pytest.raises(PruningError, match="not known in which order its fused projection returns"):
        b.prune_heads(model, {0: [1]})
    model, inputs = made("qwen2_vl")
    with pytest.raises(ShapeError, match="runs on 1 row, the batch has 2"):
        b.head_importance(model, inputs, granularity="token", loss=loss)
    model, _ = made("siglip")
    with pytest.raises(PruningError, match="torch's own module divides its whole width among its heads"):
        b.prune_heads(model, {2: [1]})


def test_hidden_states_leave_a_pooling_head_out():
    model, inputs = made("siglip")
    assert {name: x.shape for name, x in b.hidden_states(model, inputs).stacks.items()} == {"encoder": (3, 3, 4, 16)}


@pytest.mark.parametrize("name", ["torch", "torch, time first"])
def test_hidden_states_of_a_torch_encoder(name):
    model, inputs = made(name)
    found = b.hidden_states(model, inputs).values
    assert found.shape == (3, 3, 7, 16)
    torch.testing.assert_close(found[-1][inputs["attention_mask"].bool()], output(model, inputs), rtol=1e-5, atol=1e-5)


class Decoder(nn.Module):
    """`nn.TransformerDecoder`, whose cross attention is `multihead_attn`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, batch_first=True), 2)

    def forward(self, input_ids, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        return self.decoder(self.embed(input_ids), memory, tgt_mask=mask, tgt_is_causal=True)


def test_a_torch_decoder():
    model = random_weights(Decoder())
    inputs = {"input_ids": text()["input_ids"], "memory": torch.randn(3, 5, 16)}
    anatomy = b.dissect(model)
    assert anatomy.labels == ("decoder.0", "decoder.1", "cross.0", "cross.1")
    b.check_anatomy(model, inputs)
    maps = b.attention_maps(model, inputs).stacks
    assert maps["cross"].shape == (2, 3, 4, 7, 5)
    assert (maps["decoder"].triu(1) == 0).all()


def test_a_text_alone_leaves_the_image_tower_at_rest():
    model = qwen2_vl()
    inputs = {k: x for k, x in images_in_text()[0].items() if k in ("input_ids", "attention_mask")}
    inputs["input_ids"] = inputs["input_ids"].clamp_max(40)
    maps = b.attention_maps(model, inputs)
    assert set(maps.stacks) == {"decoder"}
    with pytest.raises(DataError):
        maps.stack("encoder")
