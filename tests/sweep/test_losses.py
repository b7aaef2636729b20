"""Each loss is that of the model itself, and does not depend on padding, for every class of transformers' mappings."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import bertology as b
from bertology.errors import LossError, UnknownAnatomy
from helpers.zoo import V4
from sweep.heads import Case, cases, each_alone, texts, tiny

# The models' own code warns of this and that.
pytestmark = pytest.mark.filterwarnings("ignore")
# What has another loss than its logits give, or two heads, or no labels that are shifted.
REFUSED = {
    "AlbertForPreTraining", "BertForPreTraining", "BigBirdForPreTraining", "ElectraForPreTraining",
    "ErnieForPreTraining", "EvollaForProteinText2Text", "FlaubertWithLMHeadModel", "FlavaForPreTraining",
    "MegatronBertForPreTraining", "MobileBertForPreTraining", "ProphetNetForCausalLM",
    "ProphetNetForConditionalGeneration", "RoCBertForPreTraining", "XLMWithLMHeadModel", "XLNetLMHeadModel",
}  # fmt: skip
# What transformers itself cannot build here, or cannot run on these texts with labels.
NOT_RUN = {
    "AudioFlamingo3ForConditionalGeneration", "BltForCausalLM", "ColModernVBertForRetrieval",
    "ColPaliForRetrieval", "ColQwen2ForRetrieval", "DbrxForCausalLM", "FSMTForConditionalGeneration",
    "FunAsrNanoForConditionalGeneration", "FunnelForMaskedLM", "FunnelForMultipleChoice",
    "FunnelForPreTraining", "FunnelForQuestionAnswering", "FunnelForSequenceClassification",
    "FunnelForTokenClassification", "Gemma3nForConditionalGeneration", "Gemma4AssistantForCausalLM",
    "Gemma4UnifiedAssistantForCausalLM", "GitForCausalLM", "GlmAsrForConditionalGeneration",
    "GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration", "HieraForPreTraining",
    "IdeficsForVisionText2Text", "Inkling2ForConditionalGeneration", "Inkling2LoopForConditionalGeneration",
    "LayoutLMv2ForQuestionAnswering", "LayoutLMv2ForSequenceClassification", "LayoutLMv2ForTokenClassification",
    "LongformerForMultipleChoice", "LongformerForQuestionAnswering", "LxmertForPreTraining",
    "LxmertForQuestionAnswering", "Mamba2ForCausalLM", "MllamaForConditionalGeneration",
    "MusicFlamingoForConditionalGeneration", "MusicgenForCausalLM", "MusicgenMelodyForCausalLM",
    "Nemotron3_5TranscribeForConditionalGeneration", "OmniASRForConditionalGeneration", "PerceiverForMaskedLM",
    "Qwen2AudioForConditionalGeneration", "Qwen3ASRForConditionalGeneration", "ReformerForMaskedLM",
    "SplinterForPreTraining", "UniSpeechForPreTraining", "UniSpeechSatForPreTraining", "ViTMAEForPreTraining",
    "VibeVoiceAsrForConditionalGeneration", "VideoMAEForPreTraining", "VisualBertForPreTraining",
    "VoxtralForConditionalGeneration", "VoxtralRealtimeForConditionalGeneration",
    "Wav2Vec2ConformerForPreTraining", "Wav2Vec2ForPreTraining", "xLSTMForCausalLM",
}  # fmt: skip


if V4:
    REFUSED |= {"XLMProphetNetForCausalLM", "XLMProphetNetForConditionalGeneration", "MoshiForCausalLM"}
    REFUSED |= {"NezhaForPreTraining", "Florence2ForConditionalGeneration"}
# What cannot be made small: these configs of transformers 4 set the sizes of their two parts themselves.
LARGE = {f"T5GemmaFor{task}" for task in ("ConditionalGeneration", "SequenceClassification", "TokenClassification")}


def losses(model: Any, batches: Any) -> float:
    """The mean loss of an example."""
    return 1 / b.score(model, batches, metric="inverse_loss").value


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_loss_is_that_of_the_model_and_of_each_text_alone(case: Case) -> None:
    if V4 and case.name in LARGE:
        pytest.skip("its config cannot be made small")
    alone = each_alone(case)
    try:
        model = tiny(case)
        with torch.no_grad():
            outputs = [model(**one) for one in alone]
    except Exception as error:
        if not V4 and case.name not in NOT_RUN:
            raise
        pytest.skip(f"transformers itself does not run it: {type(error).__name__}")
    try:
        b.dissect(model)
    except UnknownAnatomy as error:
        pytest.skip(f"no attention heads: {error}")
    if case.name in REFUSED:
        with pytest.raises(LossError, match=r"no loss is known for|has a loss that is not known"):
            losses(model, alone)
        return
    expected = losses(model, alone)
    assert expected == pytest.approx(torch.stack([one.loss for one in outputs]).double().mean().item(), rel=1e-4)
    for side in ("right", "left"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = losses(model, [texts(case, side)])
        said = any("padding" in str(one.message) and "results depend on it" in str(one.message) for one in told)
        assert said or found == pytest.approx(expected, rel=2e-4), f"padded on the {side}"
