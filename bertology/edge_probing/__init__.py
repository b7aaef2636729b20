"""At which layers does a model solve a task?

The probes of Tenney et al. (2019).

    train, dev = pos_edges("train.conllu"), pos_edges("dev.conllu")
    stores = [encode(model, tokenizer, task, folder) for task, folder in ((train, "train"), (dev, "dev"))]
    print(probe_layers(*stores).statistics())

A task is a list of records: words with spans and labels (`tasks`; the readers are in `formats`). `encode` runs a model
over it once and keeps the hidden states of the spans in a folder (`store`). `probe_layers` trains the probes of all
layers at once on this folder and scores them by F1; `layer_statistics`, `order` and `figures` summarize the scores.
`code_lengths` measures instead how many bits the labels take with the help of a probe.
"""

from .code_length import CodeLength, code_lengths, online_code
from .controls import control_tasks, shared_types, shuffled_labels
from .encoding import encode
from .figures import layer_panels, layers_of_tasks, sentence_strips
from .formats.columns import entity_edges, srl_edges
from .formats.conll2009 import conll2009_edges
from .formats.coreference import coreference_edges, gap_edges
from .formats.dpr import dpr_edges
from .formats.relations import ProtoRole, proto_role_edges, semeval_edges, spr1_edges
from .formats.spr2 import spr2_edges
from .formats.tacred import tacred_edges
from .formats.treebanks import bracket_pos_edges, constituent_edges, dependency_edges, pos_edges
from .jsonl import read_edges, write_edges
from .layer_statistics import LayerStatistics, layer_statistics
from .optimizer import Training
from .order import OrderAgreement, layer_table, order_agreement, order_of
from .probe_layers import cumulative_probes, follow_targets, probabilities, probe_layers, score_layers
from .probes import Probes
from .scores import LayerScores, bits_of
from .span_batches import BatchSource, EdgeBatch
from .store import Store
from .tasks import EdgeTask, Record, Target, counted_labels
from .train import Trained, train_probes
from .trajectories import LabelTrajectories, label_trajectories

__all__ = [
    "BatchSource",
    "CodeLength",
    "EdgeBatch",
    "EdgeTask",
    "LabelTrajectories",
    "LayerScores",
    "LayerStatistics",
    "OrderAgreement",
    "Probes",
    "ProtoRole",
    "Record",
    "Store",
    "Target",
    "Trained",
    "Training",
    "bits_of",
    "bracket_pos_edges",
    "code_lengths",
    "conll2009_edges",
    "constituent_edges",
    "control_tasks",
    "coreference_edges",
    "counted_labels",
    "cumulative_probes",
    "dependency_edges",
    "dpr_edges",
    "encode",
    "entity_edges",
    "follow_targets",
    "gap_edges",
    "label_trajectories",
    "layer_panels",
    "layer_statistics",
    "layer_table",
    "layers_of_tasks",
    "online_code",
    "order_agreement",
    "order_of",
    "pos_edges",
    "probabilities",
    "probe_layers",
    "proto_role_edges",
    "read_edges",
    "score_layers",
    "semeval_edges",
    "sentence_strips",
    "shared_types",
    "shuffled_labels",
    "spr1_edges",
    "spr2_edges",
    "srl_edges",
    "tacred_edges",
    "train_probes",
    "write_edges",
]
