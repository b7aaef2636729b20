"""Every line of the table of names is there for a model that is tested."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transformers as t

from bertology.anatomy.dissect import find_attentions
from bertology.anatomy.names import NAMES, QKV, Names
from helpers.zoo import FAMILIES, V4
from sweep.every_type import on_meta
from sweep.shrink import build, class_of, covered_types, tiny_config

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}


def gpt2_with_cross_attention() -> Any:
    return t.GPT2Model(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=4, add_cross_attention=True))


def kosmos2() -> Any:
    config = t.Kosmos2Config(
        text_config={"vocab_size": 40, "embed_dim": 16, "layers": 1, "ffn_dim": 24, "attention_heads": 4},
        vision_config={**SMALL, "image_size": 8, "patch_size": 4},
        latent_query_num=2,
    )
    return t.Kosmos2Model(config)


# Models that the sweep does not build: they read images, or attend to other models.
OTHERS: list[Callable[[], Any]] = [
    gpt2_with_cross_attention,
    kosmos2,
    lambda: t.BlipVisionModel(t.BlipVisionConfig(**SMALL, image_size=8, patch_size=4)),
]
# Types for images and sounds whose lines no other model needs, built on the meta device.
TOWERS = (
    "kimi_k25_vision", "qwen2_5_omni", "internvl_vision", "pvt_v2", "pix2struct", "grounding-dino", "cvt",
    "timesformer", "wav2vec2-bert", "granite_speech", "gemma4_audio", "gemma3n_audio", "bark", "gemma3n_text",
    "qwen2_vl",
)  # fmt: skip
# All lines but those that other tests register, and that of ERNIE-M, which only transformers 4 has.
LINES = [line for line in NAMES if line != Names(*QKV, "../out_proj")]


def models() -> Iterator[Any]:
    for make in [*(family.build for family in FAMILIES), *OTHERS]:
        yield make()
    for kind in TOWERS:
        yield on_meta(kind)
    for kind in covered_types():
        yield build(class_of(kind), tiny_config(kind), None)


def unused(lines: list[Names]) -> list[Names]:
    """The lines that no model needs; the search ends where there are none left."""
    left = set(lines)
    for model in models():
        left -= {found.names for found in find_attentions(dict(model.named_modules()))}
        if not left:
            break
    return [line for line in lines if line in left]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
@pytest.mark.skipif(V4, reason="the newest transformers has the most kinds of models")
def test_every_line_of_the_table_of_names_is_tested():
    nobodys = Names("nobodys_query", "key", "value", "output")
    left = unused([*LINES, nobodys])
    assert left == [nobodys], f"add a model that has these names to FAMILIES in tests/helpers/zoo.py: {left[:-1]}"
