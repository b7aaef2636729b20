"""The names that other libraries give to MLPs, to their parts and to the numbers of their neurons."""

from __future__ import annotations

import re
from typing import NamedTuple


class MlpNames(NamedTuple):
    """How the module that holds an MLP names its linear layers, as paths below it."""

    up: str
    """The layer whose outputs, after the activation, are the neurons."""
    down: str
    """The layer that the neurons go into."""
    gate: str = ""
    """The layer whose outputs, after the activation, are multiplied with those of `up`."""
    fused: str = ""
    """"parts" where `up` returns both, one after the other."""
    layout: str = "batch token width"
    """How the neurons are laid out, in the notation of einops, in stacks whose hidden states have the batch first."""
    mark: str = ""
    """An attribute that tells such an MLP from others that name their layers alike."""
    runs: int = 1
    """How often the MLP runs in one pass of its block, where it runs on several kinds of tokens."""


# The first line that fits is used, by the names and by the sizes of the layers.
MLP_NAMES = [
    # Llama and its many kin; Gemma 4's images; with a fused projection Phi-3, GLM; without a gate Nemotron, Arcee, MPT
    MlpNames("up_proj", "down_proj", gate="gate_proj"),
    MlpNames("up_proj.linear", "down_proj.linear", gate="gate_proj.linear"),
    MlpNames("gate_up_proj", "down_proj", fused="parts"),
    MlpNames("up_proj", "down_proj"),
    # BERT and its kin, whose block holds both; the layers of BLIP-2 that query images
    MlpNames("intermediate.dense", "output.dense"),
    MlpNames("intermediate_query.dense", "output_query.dense"),
    # Pegasus-X's encoder, with global tokens beside the text's; BART, OPT, Phi, CLIP, Whisper; Moshi
    MlpNames("fc1", "fc2", mark="global_self_attn_layer_norm", runs=2),
    MlpNames("fc1", "fc2"),
    MlpNames("fc1", "fc2", fused="parts"),
    # DistilBERT, XLM; GPT, GPT-2, GPT-Neo, BigCode, Starcoder 2; GPT-NeoX, BLOOM, Falcon, Persimmon; GPT-J, CodeGen
    MlpNames("lin1", "lin2"),
    MlpNames("c_fc", "c_proj"),
    MlpNames("dense_h_to_4h", "dense_4h_to_h"),
    MlpNames("fc_in", "fc_out"),
    # T5, with a gate and without; ModernBERT; ALBERT; CPM-Ant; CTRL
    MlpNames("wi_1", "wo", gate="wi_0"),
    MlpNames("wi", "wo"),
    MlpNames("Wi", "Wo", fused="parts"),
    MlpNames("ffn", "ffn_output"),
    MlpNames("w_in.w_1", "w_out", gate="w_in.w_0"),
    MlpNames("ffn.0", "ffn.2"),
    # Funnel; XLNet; LFM2; Granite; ProphetNet; wav2vec 2.0; Reformer; Perceiver; Gemma 4's sounds; SqueezeBERT; torch
    MlpNames("linear_1", "linear_2"),
    MlpNames("layer_1", "layer_2"),
    MlpNames("w3", "w2", gate="w1"),
    MlpNames("input_linear", "output_linear", fused="parts"),
    MlpNames("intermediate", "output"),
    MlpNames("intermediate_dense", "output_dense"),
    MlpNames("dense.dense", "output.dense"),
    MlpNames("dense1", "dense2"),
    MlpNames("ffw_layer_1.linear", "ffw_layer_2.linear"),
    MlpNames("intermediate.conv1d", "output.conv1d", layout="batch width token"),
    MlpNames("linear1", "linear2"),
]
# Parts of a mixture of experts: which of its neurons run depends on the token.
EXPERT_NAMES = ("experts", "router")
# Modules in which layers of these names are no MLP of the block: small networks inside of norms, adapters, routers.
NO_MLP = re.compile(r"norm|adapter|router|altup|laurel|_hc$", re.IGNORECASE)
# Classes that are MLPs by their names.
MLP_CLASSES = re.compile(r"(MLP|FFN|FeedForward|Intermediate)$", re.IGNORECASE)
# Norms over all neurons of an MLP, and a setting under which its neurons are compared with each other.
NEURON_NORM_NAMES = ("ffn_sub_norm", "ffn_layernorm", "ffn_layer_norm")
NEURON_SPARSITY_NAME = "activation_sparsity"
# Where a config, or the module that holds an MLP, says how many neurons it has.
NEURON_COUNT_NAMES = (
    "intermediate_size", "ffn_dim", "d_ff", "n_inner", "inner_dim", "hidden_dim", "d_inner", "ffn_hidden_size", "dff",
    "encoder_ffn_dim", "decoder_ffn_dim", "dim_ff", "block_ff_dim", "feed_forward_size", "intermediate_dim",
)  # fmt: skip
