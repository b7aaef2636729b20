"""How does one make a tiny model of any architecture?

`tiny(model_type)` starts from the default config, sets every size that it knows by name to a small one, and builds
the first of the model's auto classes. What names alone cannot settle stands in `SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import configuration_auto, modeling_auto

VOCAB = 60
# The first pattern that matches the whole name counts.
SIZES: list[tuple[str, Any]] = [
    (r"vocab_size|.*_vocab_size|n_vocab|vocab_size_.*", VOCAB),
    # Not hidden size over heads, wherever a config lets one choose it: a width read at the wrong place must show.
    (
        r"head_dim|d_kv|kv_channels|attention_head_dim|attn_head_dim|global_head_dim|swa_head_dim|attention_head_size",
        16,
    ),
    (r"v_head_dim|swa_v_head_dim", 12),
    (r"qk_head_dim|linear_.*_head_dim|kda_head_dim", 8),
    (r"qk_nope_head_dim|qk_rope_head_dim", 8),
    (r"index_head_dim", 16),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank", 12),
    (r"num_key_value_heads|num_kv_heads|n_head_kv|num_global_key_value_heads|swa_num_key_value_heads", 2),
    (r"linear_num_key_heads", 2),
    (
        r"num_attention_heads|num_heads|n_heads?|(en|de)coder_attention_heads|num_(en|de)coder_attention_heads|linear_num_value_heads|swa_num_attention_heads|encoder_num_heads|attention_heads|index_n_heads|num_query_heads",
        4,
    ),
    (r"mamba_n_heads|mamba_num_heads|mamba_n_groups|n_mamba_heads", 4),
    (
        r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_blocks|encoder_num_hidden_layers|decoder_num_hidden_layers",
        2,
    ),
    (
        r"hidden_size|d_model|n_embd|dim|embedding_size|emb_dim|model_dim|encoder_hidden_size|decoder_hidden_size|d_embed|hidden_size_per_layer_input|embed_dim|cross_attention_hidden_size|projection_dim|input_hidden_size|pooler_hidden_size|true_hidden_size|intra_bottleneck_size|attention_hidden_size|word_embed_proj_dim",
        32,
    ),
    (
        r"intermediate_size|d_ff|ffn_dim|(en|de)coder_ffn_dim|n_inner|hidden_dim|d_inner|.*moe_intermediate_size|ffn_hidden_size|shared_intermediate_size|.*_intermediate_size|dim_ff|intermediate_size_mlp|expert_ffn_hidden_size|mlp_dim",
        24,
    ),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_experts_per_layer", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|top_k_experts|experts_per_token|moe_top_k|top_k", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group|num_expert_group|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_source_positions|max_target_positions|context_length|max_2d_position_embeddings|seq_length|max_sequence_length|max_trellis.*",
        64,
    ),
    (
        r"attention_window|local_radius|block_size|chunk_size|sliding_window|window_size|attention_chunk_size|global_block_size|local_window_size",
        8,
    ),
    (
        r"mamba_d_state|state_size|ssm_state_size|mamba_headdim|mamba_d_head|mamba_head_dim|mamba_d_ssm|mamba_dt_rank|lru_width|conv_L_cache",
        8,
    ),
    (r"embed_size|char_embed.*|num_hash_buckets|num_hashes", 32),
]
IDS = re.compile(r".*_(token_)?(id|ids|index)")


def tiny_config(model_type: str, **special: Any) -> Any:
    """The smallest config of a model type that still has several layers and heads."""
    kind = class_of(model_type).config_class or configuration_auto.CONFIG_MAPPING[model_type]
    return _shrunk(kind, {**SPECIAL.get(kind.model_type, {}), **special})


def _shrunk(kind: Any, special: dict[str, Any]) -> Any:
    defaults = _defaults(kind)
    subs = getattr(kind, "sub_configs", {})
    settings: dict[str, Any] = {}
    for name, value in defaults.items():
        if name in subs or name in special:
            continue
        small = _small(name, value)
        if small is not None:
            settings[name] = small
    for name, sub in subs.items():
        own = special.get(name)
        if own is None or isinstance(own, dict):
            if sub is transformers.AutoConfig or sub.__name__ == "AutoConfig":
                given = defaults.get(name)
                if given is None:
                    given = getattr(kind(), name, None)
                if given is None:
                    continue
                sub = type(given)
            settings[name] = _shrunk(sub, own or {}).to_dict()
    if "qk_rope_head_dim" in settings and "head_dim" in settings:
        settings["head_dim"] = settings["qk_rope_head_dim"]  # such configs call by this name what is rotated
    settings.update({k: v for k, v in special.items() if k not in subs})
    if "kv_lora_rank" in defaults:
        settings["num_key_value_heads"] = 4
    return kind(**settings)


def _defaults(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD or name == "self":
            continue
        found[name] = None if parameter.default is parameter.empty else parameter.default
    try:
        whole = kind()
    except Exception:
        return found
    for name in found:
        try:
            value = getattr(whole, name, None)
        except Exception:  # settings that differ between layers
            continue
        if found[name] is None or not isinstance(found[name], (int, float, str, list, tuple, dict)):
            found[name] = value
    return found


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return None
    if IDS.fullmatch(name):
        if isinstance(value, int):
            return value if value < VOCAB - 10 else VOCAB - 1 - sum(map(ord, name)) % 9
        return None
    if isinstance(value, int):
        for pattern, size in SIZES:
            if re.fullmatch(pattern, name):
                return min(value, size) if value > 0 else value
    return None


HYBRID = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
MLA = {"num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **HYBRID,
        **MLA,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "linear_num_heads": 4,
        "num_expert_group": 1,
        "topk_group": 1,
    },
    "bamba": {
        "num_hidden_layers": 4,
        "attn_layer_indices": [1, 3],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
    },
    # two heads for each of its four partitions
    "codegen": {"rotary_dim": 4, "n_head": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    # its loop runs the two layers in the middle twice
    "dory": {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "n_input_layers": 1,
        "n_output_layers": 1,
        "n_recurrent_layers": 2,
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 0, "mask_token_id": 5},
    "esmc": {**MLA, "head_dim": 8},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**HYBRID, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    # its loop runs the second layer three times
    "inkling2_loop_text": {
        "num_hidden_layers": 3,
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
        "n_layers_per_attn_res_block": 1,
        "num_experts_per_tok": 4,  # all: a token that changes its expert has no derivative
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
    },
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {**HYBRID, **MLA, "mlp_layer_types": ["dense", "sparse"] * 2, "linear_num_heads": 4},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "visual_embed": False},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "lilt": {"hidden_size": 48},
    "minimax": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "mistral": {"head_dim": 16},
    "mixtral": {"head_dim": 16},
    "squeezebert": {"num_attention_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
    "qwen3_next": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 4, "block_types": ["recurrent", "attention"], "lru_width": 32},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "num_buckets": 4,
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "intermediate_size": [24] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {}},
    "neomme": {"layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {}, "head_dim": 16},
    "dots3_note_text": {
        **MLA,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "per_layer_config": {},
        "mlp_layer_types": ["dense", "sparse"],
        "head_dim": 16,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "qwen4_exp_text": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 100,
        "hc_lowrank": 8,
    },
    "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
    "deepseek_v4": {"o_groups": 2},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 32,
        "num_blocks": 2,
    },
    # transformers' own two attention functions differ more with wider heads
    "vaultgemma": {"head_dim": 12},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "longcat_flash": {**MLA, "qk_head_dim": 16, "head_dim": 8, "zero_expert_num": 2},
}

CLASSES = {"splinter": "SplinterModel", "reformer": "ReformerModel"}
# Models that add the lowest number of their type twice, which float64 cannot hold.
SINGLE = ("canine", "pegasus_x", "prophetnet", "xlm-prophetnet")
# Models whose attention runs over other positions than the text's, so that padding cannot be told.
UNPADDED = ("canine", "cpmant", "funnel", "perceiver")
LENGTHS = {"canine": 16}
MAPPINGS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)


# What has no attention heads.
NO_HEADS = ("falcon_mamba", "fnet", "mamba", "mamba2", "mega", "rwkv", "xlstm")
# What cannot be built here, or cannot run on a text alone.
NOT_BUILT = {
    "blt": "its byte patches ask for sizes that were not found",
    "dbrx": "its default config cannot be built",
    "gemma3n": "wants timm for its image tower; gemma3n_text is covered",
    "gemma4_assistant": "runs on the states of another model",
    "gemma4_unified_assistant": "runs on the states of another model",
    "layoutlmv2": "wants detectron2",
    "lxmert": "wants image features",
    "musicgen": "reads codebooks of sound, not text",
    "musicgen_melody": "reads codebooks of sound, not text",
    "nemo_speechlm": "wants sound",
    "vibevoice_asr": "its acoustic tower does not shrink; its text model is Qwen2, which is covered",
    "voxtral_realtime": "wants sound",
}


if transformers.__version__.startswith("4."):
    # Under sdpa they run without the soft cap of their scores, and under eager with it: two models.
    for name in ("gemma2", "vaultgemma"):
        SPECIAL[name] = SPECIAL.get(name, {}) | {"attn_logit_softcapping": None}
    NOT_BUILT |= {
        "bros": "its sizes were not found",
        "encoder-decoder": "cannot be built from its default config",
        "fsmt": "cannot be told its attention implementation",
        "gptsan-japanese": "gives NaN by itself in float64 and float32",
        "granitemoehybrid": "names its layers otherwise",
        "mllama": "cannot be built from its default config",
        "qdqbert": "wants pytorch-quantization",
        "speech_to_text_2": "cannot be run",
        "t5gemma": "does not shrink",
        "transfo-xl": "its sizes were not found",
        "wav2vec2": "wants sound",
        "zamba": "names its layers otherwise",
        "zamba2": "names its layers otherwise",
    }


def text_types() -> list[str]:
    """Every model type of the installed transformers that has a head for text."""
    found: set[str] = set()
    for name in MAPPINGS[:-1]:
        found |= set(getattr(modeling_auto, name, ()))
    return sorted(found)


def covered_types() -> list[str]:
    """Those of them that have attention heads and can be built here."""
    return [name for name in text_types() if name not in NO_HEADS and name not in NOT_BUILT]


def class_of(model_type: str) -> Any:
    if model_type in CLASSES:
        return getattr(transformers, CLASSES[model_type])
    for name in MAPPINGS:
        mapping = getattr(modeling_auto, name, {})
        if model_type in mapping:
            found = mapping[model_type]
            return getattr(transformers, found[0] if isinstance(found, tuple) else found)
    raise KeyError(model_type)


class CannotRunError(Exception):
    """transformers itself cannot build a tiny model of this type, or cannot run it."""


class Tiny:
    """A tiny model with random weights that matter, as it is loaded and once more with eager attention; and a batch.

    Raises `CannotRunError`, whatever transformers raises while it builds and first runs the model.
    """

    def __init__(self, model_type: str) -> None:
        try:
            self._build_and_run(model_type)
        except Exception as error:
            told = str(error).strip().partition("\n")[0]
            raise CannotRunError(
                f"transformers itself cannot run its tiny model: {type(error).__name__}: {told}"
            ) from error

    def _build_and_run(self, model_type: str) -> None:
        kind = class_of(model_type)
        self.model_type = model_type
        self.model = build(kind, tiny_config(model_type), None)
        self.eager = build(kind, tiny_config(model_type), "eager")
        self.eager.load_state_dict(self.model.state_dict())
        self.batch = _batch(self.model, LENGTHS.get(model_type, 7), model_type not in UNPADDED)
        self.double = model_type not in SINGLE
        try:
            if not self.double:
                raise RuntimeError
            with torch.no_grad():
                self.model.double()(**self.batch)
                self.eager.double()(**self.batch)  # BigBird makes its attention anew for short texts
        except RuntimeError:
            self.double = False
            with torch.no_grad():
                self.model.float()(**self.batch)
                self.eager.float()(**self.batch)
        # Many models take norms and softmaxes in float32, also where all weights are float64.
        self.tolerance = 3e-5 if self.double else 2e-4
        # Recurrent Gemma bounds a derivative in its own backward pass.
        self.difference_tolerance = 3e-2 if model_type == "recurrent_gemma" else 1e-2
        self.mixes_examples = False
        # What several checks read of the model, before any of them changes it.
        self.maps: Any = None
        self.softmaxes: list[Tensor] | None = None

    def prunable_heads(self, anatomy: Any) -> list[tuple[int, int]]:
        """Half of the heads of every layer, one of each group where keys are grouped in twos."""
        return [(site.row, head) for site in anatomy.sites for head in range(1, site.width, 2)]


def build(kind: Any, config: Any, attention: str | None) -> Any:
    torch.manual_seed(0)
    config._attn_implementation = attention
    plain_experts(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that shrink to nothing (MobileBERT)
        model = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                scale = 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def plain_experts(config: Any) -> None:
    """Without grouped matrix products, which know no float64."""
    for some in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if some is not None:
            some._experts_implementation = "eager"


def _batch(model: Any, length: int, padded: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[2, 5:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, 40, (3, 5), generator=generator)
    if model.config.model_type == "bros":
        batch["bbox"] = torch.rand(3, length, 8, generator=generator)
    return batch
