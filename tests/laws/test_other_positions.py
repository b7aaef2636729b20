"""Stacks whose positions are not the text's tokens: images, sound, pooled tokens, caches of earlier keys."""

import copy
import inspect
import math

import pytest
import torch
import transformers as t

import bertology as b
from bertology import check_anatomy
from bertology.anatomy.names import CACHE_ARGUMENTS
from bertology.data.losses import example_losses, find_loss
from bertology.errors import DataError, PruningError
from helpers.zoo import BY_NAME, V4, batch

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 8, "patch_size": 4}
# By these names all but the confidence needs to know where a query stands among the keys.
PLACED = ("previous", "next", "self", "first", "distance")


def clip():
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = t.CLIPConfig(text_config=text, vision_config={**SMALL, **IMAGE}, projection_dim=8)
    return t.CLIPModel(config).eval()


def images(many):
    return torch.randn(many, 3, 8, 8, generator=torch.Generator().manual_seed(many))


def whisper():
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = t.WhisperConfig(
        vocab_size=50, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=10,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config).double().eval()


def test_an_image_tower_has_rows_and_no_padding_of_its_own():
    model, text = clip(), batch((5, 3), labels=False)
    both = b.attention_entropy(model, {**text, "pixel_values": images(2)})
    assert both.queries.tolist() == [8, 8, 10, 10]
    alone = b.attention_entropy(model.vision_model, {"pixel_values": images(2)})
    torch.testing.assert_close(both.stack("vision_model").mean, alone.mean)
    one = {"input_ids": text["input_ids"][:1], "attention_mask": text["attention_mask"][:1], "pixel_values": images(3)}
    three = b.attention_entropy(model, one)
    assert three.queries.tolist() == [5, 5, 15, 15]
    torch.testing.assert_close(
        three.stack("vision_model").mean, b.attention_entropy(model.vision_model, {"pixel_values": images(3)}).mean
    )
    assert three.mean.max() <= math.log(5) + 1e-9
    maps = b.attention_maps(model, {**text, "pixel_values": images(2)})
    assert maps.masks["vision_model"].all()
    assert maps.masks["text_model"].sum() == 8


def test_both_towers_of_blip():
    torch.manual_seed(0)
    vision = t.BlipVisionModel(t.BlipVisionConfig(**SMALL, **IMAGE)).eval()
    anatomy = b.dissect(vision)
    assert anatomy.labels == ("0", "1")
    with torch.no_grad():
        for parameter in vision.parameters():
            parameter.normal_(0, 0.3)
    check_anatomy(anatomy, {"pixel_values": images(2)})


def test_windows_are_rows():
    torch.manual_seed(0)
    config = t.SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=2)
    model = t.SwinModel(config).eval()
    entropy = b.attention_entropy(model, {"pixel_values": torch.randn(2, 3, 16, 16)})
    assert entropy.queries.tolist() == [2 * 64, 2 * 16]
    assert entropy.mean.nan_to_num().max() <= math.log(4) + 1e-6
    assert b.attention_patterns(model, {"pixel_values": torch.randn(2, 3, 16, 16)}).confidence.nan_to_num().max() <= 1


def test_places_among_other_keys_mean_nothing():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((6, 6), labels=False)
    whole = b.attention_patterns(model, inputs)
    assert not whole.self.isnan().any()
    name = next(name for name in CACHE_ARGUMENTS if name in inspect.signature(model.forward).parameters)
    with torch.no_grad():
        cache = getattr(model(input_ids=inputs["input_ids"][:, :3], use_cache=True), name)
    rest = {"input_ids": inputs["input_ids"][:, 3:], name: cache}
    cached = b.attention_patterns(model, rest)
    assert all(getattr(cached, name).isnan().all() for name in PLACED)
    assert not cached.confidence.isnan().any()


def test_places_of_latents_mean_nothing():
    sizes = {"num_latents": 4, "d_latents": 16, "num_blocks": 1, "num_self_attends_per_block": 2}
    heads = {"num_self_attention_heads": 4, "num_cross_attention_heads": 4}
    config = t.PerceiverConfig(vocab_size=40, max_position_embeddings=7, d_model=16, **sizes, **heads)
    patterns = b.attention_patterns(t.PerceiverForMaskedLM(config).eval(), {"inputs": None} | batch((7,), labels=False))
    for row, label in enumerate(patterns.labels):
        assert patterns.distance[row].isnan().all() == ("cross" in label)


def test_the_mean_of_a_head_over_an_image():
    torch.manual_seed(0)
    model = t.ViTModel(t.ViTConfig(**SMALL, **IMAGE)).eval()
    inputs = {"pixel_values": images(2)}
    with b.ablated(model, {0: [1]}, replace="mean"):
        by_batch = model(**inputs).last_hidden_state
    with b.ablated(model, {0: [1]}, replace=b.head_outputs(model, inputs).mean()):
        by_tensor = model(**inputs).last_hidden_state
    torch.testing.assert_close(by_batch, by_tensor)


def test_speech_with_labels():
    model = whisper()
    labels = torch.tensor([[5, 6, 7, 2], [8, 9, 2, -100]])
    inputs = {"input_features": torch.randn(2, 8, 20, dtype=torch.float64), "labels": labels}
    losses = example_losses(find_loss(model), run(model, inputs), inputs)
    alone = [model(**{name: x[i : i + 1] for name, x in inputs.items()}).loss for i in range(2)]
    torch.testing.assert_close(losses, torch.stack(alone))
    assert b.head_importance(model, inputs).scores.shape == (6, 4)
    assert b.attention_entropy(model, inputs).queries.tolist() == [20, 20, 7, 7, 7, 7]
    vars(model.config)["decoder_start_token_id"] = None
    with pytest.raises(DataError, match="decoder_input_ids cannot be made from the labels.*Pass decoder_input_ids"):
        b.head_importance(model, inputs)


def run(model, inputs):
    from bertology.data.batches import without_labels

    with torch.no_grad():
        return model(**without_labels(model, inputs))


def test_pruned_towers_run_or_are_refused():
    """Attention that lays its heads side by side in as many numbers as its input has cannot have fewer heads."""
    text = {**SMALL, "vocab_size": 40, "projection_size": 16}
    models = {
        "siglip": t.SiglipModel(t.SiglipConfig(text_config=text, vision_config={**SMALL, **IMAGE})),
        "clip": clip(),
        "beit": t.BeitModel(t.BeitConfig(**SMALL, **IMAGE, use_relative_position_bias=True)),
    }
    refused = set()
    for name, model in models.items():
        model = model.eval()
        inputs = {"pixel_values": images(2)} | ({} if name == "beit" else batch((5, 5), labels=False))
        gates = torch.ones(b.dissect(model).layers, 4)
        gates[0, 1] = 0
        with torch.no_grad():
            whole = model(**inputs)[0]
            with b.gated(model, gates):
                expected = model(**inputs)[0]
        before = {key: x.clone() for key, x in model.state_dict().items()}
        try:
            b.prune_heads(model, {0: [1]})
        except PruningError:
            refused.add(name)
            assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs)[0], expected if name not in refused else whole)
    assert refused == ({"siglip", "clip", "beit"} if V4 else {"beit"})


def test_lxmert_is_pruned():
    config = t.LxmertConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=4, intermediate_size=24, l_layers=2, x_layers=1, r_layers=1,
        visual_feat_dim=6, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.LxmertModel(config).double().eval()
    inputs = batch((5, 5), labels=False) | {
        "visual_feats": torch.randn(2, 3, 6, dtype=torch.float64), "visual_pos": torch.rand(2, 3, 4).double()
    }  # fmt: skip
    twin = copy.deepcopy(model)
    for site in b.dissect(twin).sites:
        site.projection.weight.data[:, 4:8] = 0
    b.prune_heads(model, [(row, 1) for row in range(b.dissect(model).layers)])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).language_output, twin(**inputs).language_output)
