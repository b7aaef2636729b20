"""A toy of 18 heads, two of which tell the same thing, so that the loss needs one of them and neither alone.

Built by hand, not trained: a GPT-2 of 3 layers of 6 heads, with attention to all earlier tokens alike and without MLPs.
A text has tokens of one of four kinds, two bits. Head L0H1 and head L1H4 both write the first bit, strongly. L2H2
writes the second, and four heads add a little to it. All others write next to nothing.
"""

import torch
import transformers as t

TWINS = ((0, 1), (1, 4))
SECOND = (2, 2)
HELPERS = ((0, 0), (0, 5), (1, 2), (2, 3))
WIDTH, HEADS, LAYERS = 24, 6, 3
DIM = WIDTH // HEADS


def redundant_heads():
    """The model: the first bit is in coordinates 0 and 1 of each token, the second in 2 and 3."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = t.GPT2Config(
        vocab_size=8, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=8, n_inner=8, num_labels=4, **ends
    )
    model = t.GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        # Constants, by far the largest part, so that norms scale all texts and all sets of heads nearly alike.
        model.transformer.wte.weight[:, 8:] = 3 * torch.tensor([1.0, -1.0]).repeat((WIDTH - 8) // 2)
        for kind in range(4):
            one, two = 2 * (kind // 2) - 1, 2 * (kind % 2) - 1
            for token in (kind, kind + 4):
                model.transformer.wte.weight[token, :4] = torch.tensor([one, -one, two, -two]).float()
            model.score.weight[kind, 4:8] = 4 * torch.tensor([one, -one, two, -two]).float()
        for place in TWINS:
            _write(model, place, reads=0, to=4, much=2.0)
        _write(model, SECOND, reads=2, to=6, much=0.8)
        for place in HELPERS:
            _write(model, place, reads=2, to=6, much=0.06)
        generator = torch.Generator().manual_seed(0)
        for block in model.transformer.h:
            block.attn.c_proj.weight += 1e-4 * torch.randn(WIDTH, WIDTH, generator=generator)
    return model


def _write(model, place, *, reads, to, much):
    """Let a head write a bit: its first value is one coordinate of each token, which goes to two others."""
    layer, head = place
    attention = model.transformer.h[layer].attn
    attention.c_attn.weight[reads, 2 * WIDTH + head * DIM] = 1.0
    attention.c_proj.weight[head * DIM, to] = much
    attention.c_proj.weight[head * DIM, to + 1] = -much


def texts(seed, number=16):
    """Texts of four tokens of one kind each, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(number) % 4
    ids = kinds[:, None] + 4 * torch.randint(2, (number, 4), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": kinds}
