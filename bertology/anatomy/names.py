"""The names that other libraries give to their modules, attributes and arguments.

Names of other people's code are held here, in `mlp_names` and in `oddities` alone. A new architecture is one line here.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Names(NamedTuple):
    """How an attention module names its parts, as paths below it; `../` goes one module up.

    `Names("query", "key", "value", "../output.dense")` is BERT: the attention module `attention.self` holds the
    three projections, and its heads go into `attention.output.dense`.
    """

    query: str
    """The query projection."""
    key: str
    """The key projection; the query's name once more where one projection is fused."""
    value: str
    """The value projection, likewise."""
    projection: str
    """The output projection, whose input is the concatenation of the heads."""
    norm: str = ""
    """A norm over all heads together, between them and the projection: its input is then the place of the heads."""
    layout: str = "batch token width"
    """How the heads are laid out, in the notation of einops; `width` is all heads concatenated."""
    mark: str = ""
    """An attribute that tells such attention from others that name their parts alike."""
    fused: str = ""
    """How the output of a fused projection is ordered: "parts" (all queries, all keys, all values), "heads" (head by
    head, or group by group) or "quarters" (for each quarter of the heads the queries, the values, the keys). Without
    it, its heads cannot be cut out."""
    runs: int = 1
    """How often the projection runs in one pass of the attention, where it runs on several kinds of tokens."""
    bare: bool = False
    """Whether the four are not modules but parameters of the attention module, used in `torch.einsum`."""


class Loop(NamedTuple):
    """The names of the settings of a stack that runs its middle blocks several times."""

    before: str
    """How many blocks run once before them."""
    passes: str
    """How often they run."""
    end: str = ""
    """The number of the first block after them."""
    after: str = ""
    """Or how many blocks run once after them."""


QKV = ("q_proj", "k_proj", "v_proj")
# The first line that fits is used: lines with more conditions come before lines with fewer.
NAMES = [
    # BitNet; Kosmos-2
    Names(*QKV, "o_proj", norm="attn_sub_norm"),
    Names(*QKV, "out_proj", norm="inner_attn_ln"),
    # Inkling2, whose output projection holds a gate beside it
    Names("q_proj.linear", "k_proj.linear", "v_proj.linear", "o_proj.linear", mark="relative_position_bias"),
    # Llama and its many kin; NeoMME; with a fused projection Phi-3; ZAYA
    Names(*QKV, "o_proj"),
    Names(*QKV, "output_projection.o_proj"),
    Names("qkv_proj", "qkv_proj", "qkv_proj", "o_proj", fused="parts"),
    # BLIP's images
    Names("qkv", "qkv", "qkv", "projection", fused="parts"),
    # FSMT
    Names(*QKV, "out_proj", layout="token batch width", mark="encoder_decoder_attention"),
    # ERNIE-M
    Names(*QKV, "../out_proj"),
    # Pegasus-X's encoder, which projects its global tokens first, then the text's
    Names(*QKV, "out_proj", mark="block_size", runs=2),
    # BART, OPT, GPT-J, GPT-Neo, CLIP, Whisper, LFM2; fused CodeGen; MPT
    Names(*QKV, "out_proj"),
    Names("qkv_proj", "qkv_proj", "qkv_proj", "out_proj"),
    Names("Wqkv", "Wqkv", "Wqkv", "out_proj", fused="parts"),
    # Phi; ModernBERT's decoder
    Names(*QKV, "dense"),
    Names(*QKV, "Wo"),
    # DeepSeek and others with latent keys and values, with a latent query or without
    Names("q_b_proj", "kv_b_proj", "kv_b_proj", "o_proj", fused="heads"),
    Names("q_proj", "kv_b_proj", "kv_b_proj", "o_proj", fused="heads"),
    Names("q_gate_proj", "kv_b_proj", "kv_b_proj", "o_proj", fused="heads"),
    Names("q_b_proj", "kv_proj", "kv_proj", "o_a_proj", layout="batch token group width"),
    # BERT, RoBERTa, ELECTRA and their kin; DeBERTa v2 and v1; CTRL
    Names("query", "key", "value", "../output.dense"),
    Names("query_proj", "key_proj", "value_proj", "../output.dense"),
    Names("in_proj", "in_proj", "in_proj", "../output.dense", fused="heads"),
    Names("Wq", "Wk", "Wv", "dense"),
    # ALBERT; DistilBERT, XLM, Flaubert
    Names("query", "key", "value", "dense"),
    Names("q_lin", "k_lin", "v_lin", "out_lin"),
    # Reformer's hashing attention; SqueezeBERT; the encoders of LED and BigBird-Pegasus
    Names("query_key", "query_key", "value", "../output.dense"),
    Names("query", "key", "value", "../post_attention.conv1d", layout="batch width token"),
    Names("query", "key", "value", "../output"),
    # ModernBERT; GPT-NeoX, BLOOM, Falcon, Persimmon
    Names("Wqkv", "Wqkv", "Wqkv", "Wo", fused="parts"),
    Names("query_key_value", "query_key_value", "query_key_value", "dense", fused="heads"),
    # GPT, GPT-2, BigCode, and GPT-2's cross attention
    Names("q_attn", "c_attn", "c_attn", "c_proj", fused="parts"),
    Names("c_attn", "c_attn", "c_attn", "c_proj", fused="parts"),
    # T5; MPNet; XLNet
    Names("q", "k", "v", "o"),
    Names("q", "k", "v", "o", layout="token batch width", bare=True),
    # Funnel; CPM-Ant; ProphetNet, whose decoder projects its main stream first, then those that predict
    Names("q_head", "k_head", "v_head", "post_proj"),
    Names("project_q", "project_k", "project_v", "attention_out"),
    Names("query_proj", "key_proj", "value_proj", "out_proj", layout="batch stream token width", mark="ngram", runs=2),
    Names("query_proj", "key_proj", "value_proj", "out_proj"),
    # Images: Qwen-VL and its many kin, SAM, ViTDet; Kimi and Muse; Qwen-Omni; InternVL and Janus; PVT v2 and V-JEPA 2;
    # Kosmos-2.5 and Pix2Struct; Grounding DINO; CvT; TimeSformer. The order in which such a `qkv` returns is not known.
    Names("qkv", "qkv", "qkv", "proj"),
    Names(*QKV, "proj"),
    Names("q", "k", "v", "proj"),
    Names(*QKV, "projection_layer"),
    Names("query", "key", "value", "proj"),
    Names("query", "key", "value", "output"),
    Names("query", "key", "value", "out_proj"),
    Names("projection_query", "projection_key", "projection_value", "../output.dense"),
    Names("qkv", "qkv", "qkv", "../output.dense"),
    # Sounds: conformers; Granite Speech; Gemma 4 and 3n; Bark. Diffusers
    Names("linear_q", "linear_k", "linear_v", "linear_out"),
    Names("to_q", "to_kv", "to_kv", "to_out"),
    Names(*QKV, "post"),
    Names(*QKV, "../post"),
    Names("att_proj", "att_proj", "att_proj", "out_proj", fused="parts"),
    Names("to_q", "to_k", "to_v", "to_out.0"),
    # Layers of Gemma 3n and 4 that take the keys and values of another layer
    Names("q_proj", "q_proj", "q_proj", "o_proj", mark="is_kv_shared_layer"),
]
# torch's own module, whose projections of queries, keys and values are parameters of itself.
TORCH_NAMES = Names("", "", "", "out_proj")
# The setting of a config that says how wide a head is.
HEAD_WIDTH_NAME = "head_dim"
# Names of modules of cross attention, or of the modules around them.
CROSS_NAMES = (
    "crossattention",
    "encoder_attn",
    "EncDecAttention",
    "cross_attn",
    "cross_attention",
    "multihead_attn",
)
# Attributes of recurrent modules that look like attention (delta nets, lightning attention): they weigh no tokens.
RECURRENT_NAMES = ("conv1d", "A_log", "slope_rate")
# Names of classes that are attention by their name, and of parts of attention that bear its name.
ATTENTION_CLASSES = re.compile(r"attention|attn|MHA", re.IGNORECASE)
NOT_ATTENTION_CLASSES = re.compile(r"(MLP|Output|Residual|Bias|Projection|Norm|Embeddings?|Dropout)$", re.IGNORECASE)
# Names of a fused projection of queries, keys and values.
FUSED_PARTS = re.compile(r"(?:^|_)(?:w?qkvz?|query_key_value|queries_keys_values|c_attn|in_proj_weight)(?:$|_)", re.I)
# {pattern of names of classes: why such attention has no heads}.
NO_HEADS = {
    "DeformableAttention": "samples points of an image in the place of comparing queries with keys",
    "AttnBlock$|VocosAttention$": "attends with one head of convolutions, whose output is no concatenation of heads",
    "ChannelAttention": "attends from channels to channels, not from tokens to tokens",
    "AdditiveAttention|GatedAttention|^MobileViTV2": "weighs tokens or features by themselves, not by queries and keys",
    "GroupViTAssignAttention": "assigns patches to groups, where each patch shares itself out among the groups",
    "^Rwkv": "is recurrent: it weighs no tokens, so that it has no attention heads",
    "^xLSTM": "is recurrent: it weighs no tokens, so that it has no attention heads",
}
# Attributes of attention that returns more than its heads: ConvBERT's convolutions come after its heads.
MORE_THAN_HEADS = ("conv_out_layer",)
# Where an attention module says how wide a head's output is, and how many heads it has.
WIDTH_NAMES = ("v_head_dim", "attention_head_size", "head_dim", "key_value_proj_dim", "head_size", "d_head", "dim_head",
               "v_channels_per_head")  # fmt: skip
COUNT_NAMES = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_attn_heads")
# How many heads its keys have, how many query heads share one, and the width of all heads together.
KEY_COUNT_NAMES = ("num_key_value_heads", "num_kv_heads", "kv_heads")
GROUPS_NAME = "num_key_value_groups"
TOTAL_NAMES = (
    "all_head_size", "split_size", "inner_dim", "dim", "embed_dim", "attention_hidden_size", "hidden_size",
    "d_model_size", "head_size",
)  # fmt: skip
# What the config of a stack that reads images has, and one that reads text too has beside a vocabulary.
IMAGE_CONFIG_NAMES = ("image_size", "num_channels", "patch_size")
# Where the indices of pruned heads are recorded: transformers 4's name, ours for the count before pruning, and
# the config's place for models with several stacks, which transformers 4 had no name for.
PRUNED_NAME, UNPRUNED_NAME, PRUNED_BY_LABEL_NAME = "pruned_heads", "unpruned_heads", "pruned_heads_by_label"
# Where the indices of pruned neurons are recorded, in the MLP's down projection and in the config; the count before.
PRUNED_NEURONS_NAME, UNPRUNED_NEURONS_NAME = "pruned_neurons", "unpruned_neurons"
# Settings for the number of blocks, and those with an entry for each block; attributes of modules for a block's number.
BLOCK_COUNT_NAMES = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "depth",
)  # fmt: skip
FOR_EACH_BLOCK = re.compile("layer|block|pattern|window|intermediate_size")
BLOCK_NUMBER_NAMES = ("layer_idx", "layer_id", "layer_number", "layer_index")
RECORDS = (PRUNED_NAME, PRUNED_BY_LABEL_NAME, PRUNED_NEURONS_NAME)
# Which transformers sets to the number of processes that share each layer; the first version of FSDP, and the class
# that the second one adds to a module.
TENSOR_PARALLEL_NAME, FSDP_1_NAME, FSDP_2_NAME = "_tp_size", "FullyShardedDataParallel", "FSDPModule"
SWITCHED_NAME = "attention_type"  # BigBird's, which it changes in its modules, but not in its config
# Parts of an attention module with a share for each query head, to be cut along with it: gates, sinks, more queries
# (for Longformer's global tokens, LUKE's entities), DeBERTa's biases and positions.
SHARED_OUT_NAMES = (
    "gate_proj", "gate_bias", "g_proj", "sinks", "sink_proj", "query_global", "key_global", "value_global", "w2e_query",
    "e2w_query", "e2e_query", "q_bias", "v_bias", "pos_proj", "pos_q_proj", "pos_key_proj", "pos_query_proj",
)  # fmt: skip
# Linear layers that compute with their plain weights as long as this attribute of theirs is false.
PLAIN_UNLESS = {"QuantLinear": "quant_mode"}
# Where an adapter (peft) keeps the layer that it changes.
ADAPTED_NAME = "base_layer"
# Modules of adapters that hold keys and values of their own for each head: peft's prefix tuning.
KEYS_FOR_ALL_HEADS = ("PrefixEncoder",)
# Norms of all queries or all keys together: these are not cut; only their output is.
WHOLE_NORM_NAMES = {"q_norm": "query", "k_norm": "key"}
# Parts with a share for each query head that are not cut, since all layers use them: T5's position bias.
BIAS_TABLE_NAMES = ("relative_attention_bias",)
# Where a root mean square norm keeps its epsilon.
EPSILON_NAMES = ("variance_epsilon", "eps")
# The config of peft's active adapter; whether it learns tokens, how many, and of which kind: those of the last kind are
# keys alone.
ADAPTER_NAME, LEARNS_TOKENS_NAME, LEARNED_TOKENS_NAME = "active_peft_config", "is_prompt_learning", "num_virtual_tokens"
ADAPTER_KIND_NAME, LEARNS_KEYS = "peft_type", "PREFIX_TUNING"
# Packages that models come from, and packages that run them.
MODEL_LIBRARIES = ("transformers", "transformers_modules", "sentence_transformers", "peft", "timm", "diffusers")
AROUND_MODELS = ("torch", "einops", "accelerate")
# Arguments of models: the text, its embeddings, its padding and its segments, each with a prefix for a decoder's own.
IDS_ARGUMENT, EMBEDS_ARGUMENT, MASK_ARGUMENT, SEGMENTS_ARGUMENT = (
    "input_ids", "inputs_embeds", "attention_mask", "token_type_ids",
)  # fmt: skip
# The positions of the tokens, as an argument, and as the buffer in which a model keeps those of a text without padding.
POSITIONS_ARGUMENT = POSITIONS_NAME = "position_ids"
# What peft's `generate` sets on the modules inside.
SET_BY_GENERATE = ("prepare_inputs_for_generation", "generation_config")
# The argument of a forward pass that takes all others together, as one mapping (sentence-transformers).
ALL_IN_ONE_ARGUMENTS = ("input", "features")
DECODER_PREFIX, ENCODER_PREFIX = "decoder_", "encoder_"
DECODER_IDS_ARGUMENT = DECODER_PREFIX + IDS_ARGUMENT
# The labels: of a class, of tokens or of numbers, and of the span that answers a question.
LABELS_ARGUMENT, SPAN_ARGUMENTS = "labels", ("start_positions", "end_positions")
# Settings of models of images and text: the token that stands for a part of an image in the text.
IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")
# Outputs of models, in the order in which they are returned without names: the loss, and what a loss is computed from.
LOSS_OUTPUT, LOGITS_OUTPUT, SPAN_OUTPUTS = "loss", "logits", ("start_logits", "end_logits")
# A setting under which a mixture of experts adds the loss of its router.
ROUTER_LOSS_NAME = "output_router_logits"
# Ends of the names of classes, as regular expressions: causal language models, models that write a text, and others of
# which the labels are not tokens to be written. XLNet, XLM and Flaubert do not shift their labels, nor do CPM-Ant
# and the decoders of encoder-decoders that are used alone.
UNSHIFTED_CLASSES = (
    "(Bart|MBart|PLBart|BigBirdPegasus|Pegasus|PegasusX|Blenderbot|BlenderbotSmall|Marian|Mvp|TrOCR|Whisper|"
    "Speech2Text2|CpmAnt)ForCausalLM"
)
CAUSAL_CLASSES = "(?<!XLNet)(?<!With)LMHeadModel|ForCausalLM|BertGenerationDecoder|ReformerModelWithLMHead"
# Causal language models of families of encoders: with `is_decoder` in their config they see earlier tokens alone, and
# without it all of them, also the one that they are to predict.
ENCODER_LM_CLASSES = (
    "(Bert|BigBird|Camembert|Data2VecText|Electra|Ernie|MegatronBert|RemBert|RoCBert|RoFormer|Roberta|"
    "RobertaPreLayerNorm|XLMRoberta|XLMRobertaXL|Xmod|QDQBert|Mega)(LMHeadModel|ForCausalLM)|BertGenerationDecoder"
)
DECODES_NAME = "is_decoder"
GENERATING_CLASSES = "ForConditionalGeneration|ForSeq2SeqLM|EncoderDecoderModel|MarianMTModel|ForTextToText"
TASK_CLASSES = "For[A-Z]|LMHead|EncoderDecoderModel|MTModel|GenerationDecoder"
LABELLING_CLASSES = "Classification|ForQuestionAnswering|ForMultipleChoice"
# Classes whose names are like those of others, and whose losses may not be: predicted n-grams, a beam of spans.
OTHER_LOSSES = (
    "ProphetNetForConditionalGeneration", "ProphetNetForCausalLM", "XLMProphetNetForConditionalGeneration",
    "XLMProphetNetForCausalLM", "XLNetForQuestionAnswering", "XLMForQuestionAnswering", "FlaubertForQuestionAnswering",
    "MoshiForCausalLM", "Florence2ForConditionalGeneration",  # of transformers 4
)  # fmt: skip
# Beginnings of the names of classes in which padding at the end counts: convolutions, Fourier transforms, landmarks and
# hashes over all positions, pooled tokens, and a summary that is read from the last position.
PADDING_COUNTS = (
    "ConvBert", "MobileBert", "FNet", "Nystromformer", "Yoso", "Canine", "XLNet", "RoFormerForMultipleChoice",
    "PaliGemma", "Reformer", "CpmAnt", "Doge", "T5GemmaForSequenceClassification", "T5Gemma2ForSequenceClassification",
)  # fmt: skip
MASK_ENDING = "mask"  # the end of the names of all masks
# Masks that tokenizers and processors may return for a model that takes none.
UNUSED_MASKS = ("special_tokens_mask", MASK_ARGUMENT, "pixel_mask", "pixel_attention_mask")
# Inputs other than text: images and sounds.
NO_TEXT_ARGUMENTS = ("pixel_values", "input_features", "input_values")
# How many axes an input has at least, the batch axis among them.
LEAST_AXES = {IDS_ARGUMENT: 2, EMBEDS_ARGUMENT: 3, "input_values": 2}
# Arguments of models: the cache of earlier tokens (the second up to transformers 5.23), and whether to use it.
CACHE_ARGUMENTS = ("cache", "past_key_values")
# Other arguments with a state of earlier tokens: of Mamba, XLNet, RWKV, Reformer, and of streamed sound.
STATE_ARGUMENTS = (
    *CACHE_ARGUMENTS, "cache_params", "layer_past", "mems", "state", "past_buckets_states", "encoder_cache",
    "decoder_cache", "padding_cache",
)  # fmt: skip
USE_CACHE_ARGUMENT = "use_cache"
# Settings of `generate` under which a step is not one new token of each text, and the values under which it is.
GENERATION_ALTERNATIVES = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1, "penalty_alpha": None,
    "dola_layers": None, "assistant_model": None, "prompt_lookup_num_tokens": None, "prefill_chunk_size": None,
}  # fmt: skip
# Settings: how many positions and how many segments a model has.
MOST_POSITIONS_NAME, SEGMENT_KINDS_NAME = "max_position_embeddings", "type_vocab_size"
# Arguments that make a model or an eager attention function return more, and the name of the first such output.
OUTPUT_STATES_ARGUMENT, OUTPUT_MAPS_ARGUMENT = "output_hidden_states", "output_attentions"
STATES_NAME = "hidden_states"
# Arguments of blocks and attention modules: their input, T5's bias and the mask that it is added to.
STATES_ARGUMENT, BIAS_ARGUMENT, BIASED_MASK_ARGUMENT = "hidden_states", "position_bias", "mask"
# Arguments of Longformer's attention: the global tokens, the masked ones, whether there are global ones at all.
GLOBAL_ARGUMENT, MASKED_ARGUMENT, ANY_GLOBAL_ARGUMENT = "is_index_global_attn", "is_index_masked", "is_global_attn"
# Arguments of the functions that are on transformers' attention interface.
DROPOUT_ARGUMENT, SCALE_ARGUMENT = "dropout", "scaling"
# An attribute of attention on this interface: whether it is causal where there is no mask. And what comes before the
# name of a function for continuous batching.
CAUSAL_NAME, PAGED_PREFIX = "is_causal", "paged|"
# And the bound of its scores, which torch's fused attention does not have.
CAP_NAME, FUSED_IMPLEMENTATION = "attn_logit_softcapping", "sdpa"
FUSED_NAME = "_supports_sdpa"  # whether a model can use torch's fused attention
# Arguments that hold a share for each query head, made for all layers at once.
BIAS_NAMES = ("position_bias", "alibi", "rel_pos", "rel_2d_pos", "relative_position_bias")
# Settings under which a block adds a bias for each head to its mask (BEiT).
BIASED_MASK_NAMES = ("use_relative_position_bias", "use_shared_relative_position_bias")
# Parts that all heads share: latents, their norms, the choice of tokens before attention.
COMMON_NAMES = (
    "q_a_proj", "q_a_layernorm", "k_rope_only_layernorm", "q_a_norm", "q_b_norm", "kv_a_proj_with_mqa",
    "kv_a_layernorm", "kv_norm", "indexer", "rotary_emb", "dense_bias", "LayerNorm", "layer_norm", "layernorm1",
    "layernorm2", "v_norm",
)  # fmt: skip
# An attribute of attention whose heads are differences of two maps each (DiffLlama). Such a head is twice as wide.
DIFFERENCE_NAME = "lambda_q1"
# Norms whose place is known: they are not between the heads and the projection.
NORMS_ELSEWHERE = (
    "q_norm", "k_norm", "v_norm", "qk_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm",
    "q_a_layernorm", "kv_a_layernorm", "k_rope_only_layernorm", "q_a_norm", "q_b_norm", "kv_norm",
    "layernorm1", "layernorm2", "LayerNorm", "layer_norm", "pre_norm", "norm_media", "norm_latents",
    # DiffLlama's norms each pair of heads by itself
    "groupnorm",
)  # fmt: skip
# Lists of blocks that run several times over in one forward pass, and the settings whose product says how often.
REPEATS = {
    "L_module.layers": ("H_cycles", "L_cycles"),
    "H_module.layers": ("H_cycles",),
    "self_attends": ("num_blocks",),
}
# Stacks that run their middle blocks several times.
LOOPS = {
    "Inkling2LoopTextModel": Loop("loop_layer_index_start", "loop_num_passes", end="loop_layer_index_end"),
    "DoryModel": Loop("n_input_layers", "n_recurrent_loops", after="n_output_layers"),
}
