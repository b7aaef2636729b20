"""What tests of statistics over layers share."""

import torch

from bertology.edge_probing.layer_statistics import (
    layer_statistics,
)

# METHODS A3, figure 1 of the paper, BERT-large: expected layer, K(Δ), centre of gravity, K(s); and the names in
# figures.json of the F1 grid and of the mixing weights.
PUBLISHED = {
    "POS": (3.39, 1.60, 11.68, 0.19, "pos-ontonotes-_micro_avg_", "POS"),
    "Consts": (3.79, 1.57, 13.06, 0.83, "nonterminal-ontonotes-_micro_avg_", "Consts."),
    "Deps": (5.69, 1.15, 13.75, 0.87, "dep-labeling-ewt-_micro_avg_", "Deps."),
    "Entities": (4.64, 1.61, 13.16, 0.06, "ner-ontonotes-_micro_avg_", "Entities"),
    "SRL": (6.54, 1.31, 13.63, 0.46, "srl-conll2012-_clean_micro_", "SRL"),
    "Coref": (9.47, 0.60, 15.80, 0.50, "coref-ontonotes-conll-1", "Coref."),
    "SPR": (9.93, 0.33, 12.72, 0.01, "spr1-_micro_avg_", "SPR"),
    "Relations": (9.40, 0.50, 12.83, 0.01, "rel-semeval-_clean_micro_", "Relations"),
}


def published(figures):
    """{task: statistics} of BERT-large; of the second run of Relations, only the first is taken."""
    grids, mixes = figures["tenney_cumulative_dev_F1_percent"], {}
    for row in figures["tenney_bert_large_scalar_mix"]:
        mixes.setdefault(row["task"], torch.tensor(row["w"], dtype=torch.float64))
    return {
        task: layer_statistics(torch.tensor(grids[grid]["bert-large"], dtype=torch.float64) / 100, mixes[mix])
        for task, (*_, grid, mix) in PUBLISHED.items()
    }
