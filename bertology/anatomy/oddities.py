"""What is special about single classes of other libraries: of attention, of blocks, of stacks and of models.

A new architecture that is odd is one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Shares(NamedTuple):
    """What the parts of an attention, whatever they are, have to do with its heads."""

    axes: Mapping[str, int] = MappingProxyType({})
    """{path below the attention: axis}: parameters with a share for each query head, and the axis of the heads."""
    common: tuple[str, ...] = ()
    """Parts that all heads share."""
    keys: tuple[str, ...] = ()
    """Parts with a share for each key head, which are not cut: all key heads must remain."""
    all_keys: bool = False
    """Whether all key heads must remain for another reason."""
    counts: tuple[str, ...] = ()
    """Modules inside the attention that keep the number of its query heads, too."""
    equal: tuple[str, ...] = ()
    """Attributes that must be equal; otherwise heads are mixed with each other."""


class Oddities(NamedTuple):
    """What is special about attention of one class, beyond how it names its parts."""

    fused: str = ""
    """How its fused projection is arranged, where that is not what the line of its names says: as in `Names`."""
    shares: Shares | None = None
    """What its parts have to do with its heads, where no rule for all classes covers them."""
    uncut: str = ""
    """Why its heads cannot be cut out."""
    uncut_4: str = ""
    """Why they cannot be cut out in transformers 4."""
    takes_bias: bool = False
    """Whether it was seen to work with some heads' shares of a position bias that is made for all layers."""
    mask_in_bias: bool = False
    """Whether it passes this bias on with its mask added."""
    softmaxes: int = 1
    """How many softmaxes over [batch, head, query, key] it takes."""
    map_number: int = 0
    """Which of these softmaxes is its attention map, counted from 0."""
    bands: str = ""
    """"windows" around each query, or "blocks", where it computes attention in bands."""
    remade: bool = False
    """Whether the model puts another module in its place while it runs, and keeps what holds it."""
    unmapped: str = ""
    """Why it has no map as it is, where that depends on the text."""
    inexact_gradient: str = ""
    """Why its own backward pass is not the derivative of its forward pass."""


_RELATIVE = {"r_w_bias": 0, "r_r_bias": 0, "r_s_bias": 0, "seg_embed": 1}
_INKLING = Shares({"r_proj.weight": 0}, ("rel_logits_proj",), ("k_sconv", "v_sconv"))
# Its parts have the first names up to transformers 5.23, and then the second.
_INKLING2 = Shares(
    {
        **_INKLING.axes, "q_l2_clip.scale": 0, "rel_l2_clip.scale": 0,
        "q_proj.norm.scale": 0, "o_proj.gate_proj.weight": 0,
        "relative_position_bias.linear.weight": 0, "relative_position_bias.norm.scale": 0,
    },
    (*_INKLING.common, "relative_position_bias"),
    (*_INKLING.keys, "k_proj", "v_proj"),
    counts=("relative_position_bias",),
)  # fmt: skip
_RESIZED = "it takes their width together from the hidden states"
_REMADE = "the model replaces it with full attention on short texts (call set_attention_type('original_full') first)"
_SPARSE = (
    "is block-sparse for a text of this length: it reads the first block several times over, which the maps that "
    "transformers returns leave out, so that they do not sum to 1. Take shorter texts, or full attention: "
    "set_attention_type('original_full')"
)
_GLOBAL = (
    "attends from the tokens of the text in one softmax, and from its global tokens in another: there is no one map "
    "from tokens to tokens"
)
_TAKES_BIAS = Oddities(takes_bias=True)
# Attention that puts its heads side by side in as many dimensions as its input has, so that it cannot have fewer.
_SIZED_BY_INPUT = (
    "Blip2Attention", "BlipAttention", "CvtSelfAttention", "EfficientLoFTRAttention", "GLPNEfficientSelfAttention",
    "GroupViTAttention", "InstructBlipAttention", "InstructBlipVideoAttention", "LEDDecoderAttention",
    "Mask2FormerAttention", "OneFormerAttention", "OneFormerTextMapperAttention",
    "ProphetNetAttention", "ProphetNetNgramSelfAttention", "PvtEfficientSelfAttention", "PvtV2SelfAttention",
    "TableTransformerAttention", "TrOCRAttention", "VJEPA2PoolerCrossAttention",
)  # fmt: skip
# The same, where only transformers 4 does it.
_SIZED_BY_INPUT_4 = (
    "Aimv2Attention", "AltCLIPAttention", "CLIPAttention", "CLIPSegAttention", "DFineMultiheadAttention",
    "DeformableDetrMultiheadAttention", "DetrAttention", "EomtAttention", "Emu3VQVAEAttentionBlock",
    "GitVisionAttention", "Idefics2VisionAttention", "Idefics3VisionAttention", "JanusAttention",
    "Kosmos2VisionAttention", "MetaClip2Attention", "Ovis2Attention", "Ovis2VisionAttention", "OwlViTAttention",
    "Owlv2Attention", "RTDetrMultiheadAttention", "RTDetrV2MultiheadAttention", "SegformerEfficientSelfAttention",
    "Siglip2Attention", "SiglipAttention", "SmolVLMVisionAttention", "VJEPA2PoolerSelfAttention", "XCLIPAttention",
    "XCLIPCrossAttention", "XLMProphetNetAttention", "XLMProphetNetNgramSelfAttention",
)  # fmt: skip
ODDITIES: Mapping[str, Oddities] = {
    **dict.fromkeys(_SIZED_BY_INPUT, Oddities(uncut=_RESIZED)),
    **dict.fromkeys(_SIZED_BY_INPUT_4, Oddities(uncut_4=_RESIZED)),
    "LongformerSelfAttention": Oddities(uncut=_RESIZED, bands="windows"),
    "LEDEncoderSelfAttention": Oddities(uncut=_RESIZED, bands="windows"),
    "BigBirdBlockSparseAttention": Oddities(uncut=_REMADE, remade=True, unmapped=_SPARSE),
    "BigBirdPegasusBlockSparseAttention": Oddities(uncut=_REMADE, remade=True, unmapped=_SPARSE),
    "PegasusXGlobalLocalAttention": Oddities(uncut=_RESIZED, softmaxes=2, unmapped=_GLOBAL),
    # LiLT attends with its layout first, then with its text.
    "LiltSelfAttention": Oddities(uncut="its layout stream uses their maps", softmaxes=2, map_number=1),
    "T5Attention": _TAKES_BIAS,
    "MT5Attention": _TAKES_BIAS,
    "UMT5Attention": _TAKES_BIAS,
    "SwitchTransformersAttention": _TAKES_BIAS,
    "LongT5Attention": _TAKES_BIAS,
    "LongT5LocalAttention": Oddities(takes_bias=True, mask_in_bias=True, bands="blocks"),
    "MPNetSelfAttention": _TAKES_BIAS,
    "BloomAttention": _TAKES_BIAS,
    "MptAttention": _TAKES_BIAS,
    "FalconAttention": _TAKES_BIAS,
    "LayoutLMv3SelfAttention": _TAKES_BIAS,
    "CpmAntAttention": _TAKES_BIAS,
    "YosoSelfAttention": Oddities(inexact_gradient="estimates its gradient by sampling"),
    "CodeGenAttention": Oddities(fused="quarters"),
    "DeepseekV4Attention": Oddities(fused="heads", shares=Shares(common=("o_b_proj", "compressor"))),
    "DiffLlamaAttention": Oddities(shares=Shares(common=("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"))),
    "FunnelRelMultiheadAttention": Oddities(shares=Shares(_RELATIVE | {"r_kernel": 1})),
    "XLNetRelativeAttention": Oddities(shares=Shares(_RELATIVE | dict.fromkeys("qkvor", 1))),
    "NystromformerSelfAttention": Oddities(shares=Shares({"conv.weight": 0}, equal=("num_landmarks", "seq_len"))),
    "InklingAttention": Oddities(shares=_INKLING),
    "Inkling2SlidingAttention": Oddities(shares=_INKLING2),
    "Inkling2FullAttention": Oddities(shares=_INKLING2),
    "Inkling2LoopSlidingAttention": Oddities(shares=_INKLING2),
    "Inkling2LoopFullAttention": Oddities(shares=_INKLING2),
    # Its dynamic mask is made of the values of all key heads.
    "DogeAttention": Oddities(shares=Shares(keys=("A", "dt_proj"))),
    # Its embeddings of values have a share for each key head.
    "NeoMMEAttention": Oddities(
        shares=Shares({"exclusive_self_attention.alpha": 0, "output_projection.gate_proj.weight": 0}, all_keys=True)
    ),
    "SqueezeBertSelfAttention": Oddities(shares=Shares()),
    "MultiheadAttention": Oddities(uncut="torch's own module divides its whole width among its heads"),
}


def oddities_of(module: object) -> Oddities:
    """What is special about attention of the class of a module."""
    return ODDITIES.get(type(module).__name__, _USUAL)


class BlockOddities(NamedTuple):
    """What is special about the blocks, stacks and models of one class."""

    layout: str = "batch token hidden"
    """A block: how the hidden state that it passes on is laid out, in the notation of einops."""
    called: bool = True
    """A block: whether it is called as a module; else its `forward` is, which skips all hooks."""
    pads: bool = False
    """A stack: whether it pads texts at the end, for windows of its own."""
    prefixes: bool = False
    """A stack: whether it puts tokens of its own in front of the text."""
    needs_cache: bool = False
    """A model: whether it computes something else without a cache (it keeps old states, or masks other tokens)."""
    unties_last_4: bool = False
    """A model: whether its hidden states in transformers 4 end before the final norm, with its last block's output."""


_USUAL, _USUAL_BLOCK = Oddities(), BlockOddities()
_UNTIED_4 = BlockOddities(unties_last_4=True)
BLOCK_ODDITIES: Mapping[str, BlockOddities] = {
    "DeepseekV4DecoderLayer": BlockOddities(layout="batch token stream hidden"),
    "HYV4DecoderLayer": BlockOddities(layout="batch token stream hidden"),
    "Gemma3nTextDecoderLayer": BlockOddities(layout="stream batch token hidden"),
    "SqueezeBertModule": BlockOddities(called=False),
    "BigBirdEncoder": BlockOddities(pads=True),
    "BigBirdPegasusEncoder": BlockOddities(pads=True),
    "LongformerEncoder": BlockOddities(pads=True),
    "LEDEncoder": BlockOddities(pads=True),
    "PegasusXEncoder": BlockOddities(pads=True),
    "ReformerEncoder": BlockOddities(pads=True),
    "CpmAntEncoder": BlockOddities(prefixes=True),
    "RecurrentGemmaModel": BlockOddities(needs_cache=True),
    "FSMTModel": BlockOddities(needs_cache=True),
    "BioGptModel": _UNTIED_4,
    "CLIPTextModel": _UNTIED_4,
    "CLIPVisionModel": _UNTIED_4,
    "DeiTModel": _UNTIED_4,
    "ModernBertModel": _UNTIED_4,
    "RobertaPreLayerNormModel": _UNTIED_4,
    "ViTModel": _UNTIED_4,
}


def block_oddities_of(module: object) -> BlockOddities:
    """What is special about blocks, stacks or models of the class of a module."""
    return BLOCK_ODDITIES.get(type(module).__name__, _USUAL_BLOCK)
