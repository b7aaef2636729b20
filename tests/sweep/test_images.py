"""Tiny models that read images: their heads are where they are said to be, and their maps are those of transformers."""

import pytest
import torch

import bertology as b
from helpers.towers import random_weights
from sweep.every_type import class_of_type, every_type

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
TYPES = (
    "aimv2_vision_model", "beit", "clip_vision_model", "clipseg_vision_model", "data2vec-vision", "deit", "dinov2",
    "dinov2_with_registers", "dpt", "ijepa", "siglip_vision_model", "vit", "vit_msn", "vitdet",
    "vivit", "yolos", "blip_vision_model", "sam_vision_model", "metaclip_2_vision_model",
)  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "num_frames": 2, "tubelet_size": [2, 8, 8], "pretrain_image_size": 16, "mlp_ratio": 2,
    "projection_dim": 16, "window_size": 0, "num_detection_tokens": 2, "num_patches": 4, "window_block_indices": [],
    "out_indices": [0, 1], "backbone_out_indices": [0, 1], "output_channels": 16, "global_attn_indexes": [0, 1],
    "num_pos_feats": 16,
}  # fmt: skip


@pytest.mark.parametrize("model_type", [name for name in TYPES if name in every_type()])
def test_the_heads_of_a_tower_are_proved(model_type):
    kind = class_of_type(model_type)
    default = kind.config_class()
    settings = {name: size for name, size in SIZES.items() if hasattr(default, name)}
    if "mlp_ratio" in settings:
        settings["mlp_ratio"] = type(default.mlp_ratio)(2)
    if isinstance(getattr(default, "image_size", None), (list, tuple)):
        settings["image_size"] = [16, 16]
    config = kind.config_class(**settings)
    model = random_weights(kind(config))
    shape = (2, 2, 3, 16, 16) if model_type == "vivit" else (2, 3, 16, 16)
    batch = {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}
    b.check_anatomy(model, batch)
    maps = b.attention_maps(model, batch).stacks
    assert all((x.sum(-1) - 1).abs().max() < 1e-5 for x in maps.values())
    importance = b.head_importance(model, batch, loss=lambda out, _: out[0].sin().flatten(1).sum(1))
    assert (importance.scores >= 0).all()
    eager = kind._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    try:
        with torch.no_grad():
            given = eager(**batch, output_attentions=True).attentions
    except (AttributeError, TypeError):
        return  # transformers returns none
    if given and given[0] is not None and len(given) == len(maps["encoder"]):
        shown = torch.stack([x.reshape(maps["encoder"].shape[1:]) for x in given])
        torch.testing.assert_close(maps["encoder"], shown, rtol=1e-4, atol=1e-5)
