"""What tests of pruned models share."""

import torch

SOME = {0: [1, 2], 1: [0]}


def heads_for(family, heads):
    """The heads as the family can lose them: ALBERT's in all layers, Llama's in whole groups of two."""
    if family.name == "albert":
        every = sorted({head for some in heads.values() for head in some})
        return dict.fromkeys(range(2), every)
    if family.name == "llama":
        return {
            layer: sorted({h for head in some for h in (head // 2 * 2, head // 2 * 2 + 1)})
            for layer, some in heads.items()
        }
    return heads


def gates_for(heads):
    gates = torch.ones(2, 4)
    for layer, some in heads.items():
        gates[layer, some] = 0
    return gates


def logits(model, inputs):
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "labels"}).logits


def seq2seq(name):
    import transformers

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    configs = {
        "t5": transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, **special),
        "bart": transformers.BartConfig(
            vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, bos_token_id=2,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
            forced_eos_token_id=None, **special,
        ),
    }  # fmt: skip
    kinds = {"t5": transformers.T5ForConditionalGeneration, "bart": transformers.BartForConditionalGeneration}
    model = kinds[name](configs[name]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model
