"""A small model that writes, and batches with texts of different lengths for it to learn from."""

import torch
from transformers import BartConfig, BartForConditionalGeneration

PAD, START, END = 0, 1, 2


def bart():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=24, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=PAD,
        bos_token_id=START, eos_token_id=END, decoder_start_token_id=START, forced_eos_token_id=None, init_std=0.5,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def texts():
    generator = torch.Generator().manual_seed(1)
    made = []
    for lengths in ((5, 8), (7, 3, 6)):
        ids = torch.full((len(lengths), 9), PAD)
        labels = torch.full((len(lengths), 9), -100)
        for row, many in enumerate(lengths):
            words = torch.randint(3, 24, (many,), generator=generator)
            ids[row, : many + 1] = labels[row, : many + 1] = torch.cat([words, torch.tensor([END])])
        made.append({"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels})
    return made
