"""Tiny models with towers for images and sounds, and with torch's own attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from torch import nn

from helpers.zoo import V4

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = {**SMALL, "image_size": 8, "patch_size": 4}


def random_weights(model: nn.Module) -> Any:
    """The model in eval mode, with random weights that matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                size = parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 4.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / size)
    return model.eval()


def qwen2_vl(**settings: Any) -> Any:
    """Its image tower has the patches of all images in one row, without a batch axis."""
    rotary = {"rope_type": "default", "rope_theta": 1e4, "type": "mrope", "mrope_section": [1, 1, 2]}
    config = t.Qwen2VLConfig(
        text_config={**SMALL, "hidden_size": 32, "vocab_size": 60, "num_key_value_heads": 2,
                     "rope_parameters": rotary, "rope_scaling": rotary, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"depth": 2, "embed_dim": 24, "num_heads": 3, "hidden_size": 32, "patch_size": 2, "mlp_ratio": 2},
        image_token_id=50, video_token_id=51, vision_start_token_id=52, vision_end_token_id=53,
    )  # fmt: skip
    return random_weights(t.Qwen2VLForConditionalGeneration._from_config(config, **settings))


def llava(text: Any, vision: Any, seed: int, **settings: Any) -> Any:
    """A model of images and text, of the configs of both; 39 stands for a patch of an image."""
    config = t.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39, **settings)
    torch.manual_seed(seed)
    return t.LlavaForConditionalGeneration(config).double().eval()


def texts_with_image(examples: int) -> dict[str, torch.Tensor]:
    """Nine tokens, with an image of four patches from the second one on."""
    ids = torch.randint(3, 39, (examples, 9))
    ids[:, 1:5] = 39
    return {"input_ids": ids, "pixel_values": torch.randn(examples, 3, 8, 8, dtype=torch.float64)}


def images_in_text() -> list[dict[str, torch.Tensor]]:
    """Two examples: one with an image of 2 x 4 patches and one of 4 x 4, and one with an image of 4 x 2."""
    generator = torch.Generator().manual_seed(5)
    sizes = [[(2, 4), (4, 4)], [(4, 2)]]
    batch = []
    for images in sizes:
        ids = torch.randint(3, 40, (1, 14), generator=generator)
        start = 1
        for height, width in images:
            ids[0, start - 1], ids[0, start : start + height * width // 4] = 52, 50
            start += height * width // 4 + 2
        patches = sum(height * width for height, width in images)
        batch.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "pixel_values": torch.randn(patches, 3 * 2 * 2 * 2, generator=generator),
                "image_grid_thw": torch.tensor([[1, *size] for size in images]),
                "labels": torch.where(ids >= 50, -100, ids),
                **({} if V4 else {"mm_token_type_ids": (ids == 50).int()}),
            }
        )
    return batch


def joined(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The examples as one batch."""
    return {key: torch.cat([one[key] for one in batches]) for key in batches[0]}


def vit_det(**settings: Any) -> Any:
    """A fused `qkv`; the heads lie in rows and columns. Its softmax is its own."""
    config = t.VitDetConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=12, pretrain_image_size=12,
        patch_size=4, window_block_indices=[], use_relative_position_embeddings=True,
    )  # fmt: skip
    return random_weights(t.VitDetModel._from_config(config, **settings))


def siglip(**settings: Any) -> Any:
    """Its pooling head is `nn.MultiheadAttention`."""
    return random_weights(t.SiglipVisionModel._from_config(t.SiglipVisionConfig(**IMAGES), **settings))


def conformer(**settings: Any) -> Any:
    """`linear_q`, `linear_k`, `linear_v`, `linear_out`, with relative positions."""
    config = t.Wav2Vec2ConformerConfig(
        **SMALL, vocab_size=20, conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(4, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2, conv_depthwise_kernel_size=3,
        position_embeddings_type="relative",
    )  # fmt: skip
    return random_weights(t.Wav2Vec2ConformerModel._from_config(config, **settings))


def speech_bert(**settings: Any) -> Any:
    """The same names, in Wav2Vec2-BERT."""
    config = t.Wav2Vec2BertConfig(**SMALL, feature_projection_input_dim=10, conv_depthwise_kernel_size=3)
    return random_weights(t.Wav2Vec2BertModel._from_config(config, **settings))


class Torch(nn.Module):
    """`nn.TransformerEncoder` over the embeddings of a text."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids)
        padding = None if attention_mask is None else attention_mask == 0
        if self.encoder.layers[0].self_attn.batch_first:
            return self.encoder(x, src_key_padding_mask=padding)
        return self.encoder(x.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)


def first_tensor(outputs: Any) -> torch.Tensor:
    """The output of the model, or the pooled image if there is one."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    pooled = outputs.get("pooler_output")
    return next(x for x in outputs.values() if isinstance(x, torch.Tensor)) if pooled is None else pooled


def loss(outputs: Any, batch: Any) -> torch.Tensor:
    """[batch]: some loss, of real positions where these are the text's."""
    x = first_tensor(outputs).sin()
    x = x * batch["attention_mask"][..., None] if isinstance(outputs, torch.Tensor) else x
    return x.flatten(1).sum(1)
