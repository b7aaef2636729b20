"""At which layers does a model come to know a task?

The probes of Tenney et al. (2019).

    train, dev = pos_edges("train.conllu"), pos_edges("dev.conllu")
    stores = [encode(model, tokenizer, task, folder) for task, folder in ((train, "train"), (dev, "dev"))]
    print(probe_layers(*stores).statistics())

A task is records of words with spans and labels (`records`, and the files named after readers and makers); `encode`
runs a model over it once and keeps what its layers make of the spans in a folder (`store`); `probe_layers` trains the
probes of all layers from there at once, and `layers` and `trajectories` say what they tell.
"""

from .code_length import CodeLength, bits_of, online_code
from .column_makers import entity_edges, srl_edges
from .controls import control_tasks, shared_types, shuffled_labels
from .coref_makers import coreference_edges, gap_edges
from .counted import counted_labels
from .encoding import encode
from .jsonl import read_edges, write_edges
from .layers import LayerStatistics, layer_statistics
from .makers import bracket_pos_edges, constituent_edges, dependency_edges, pos_edges
from .optimizing import Training
from .orders import OrderAgreement, layer_table, order_agreement, order_of
from .probes import Probes
from .probing import cumulative_probes, probabilities, probe_layers, score_layers
from .records import EdgeTask, Record, Target
from .relation_makers import ProtoRole, proto_role_edges, semeval_edges, spr1_edges
from .scores import LayerScores
from .spans import BatchSource, EdgeBatch
from .store import Store
from .training import Trained, train_probes
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
    "constituent_edges",
    "control_tasks",
    "coreference_edges",
    "counted_labels",
    "cumulative_probes",
    "dependency_edges",
    "encode",
    "entity_edges",
    "gap_edges",
    "label_trajectories",
    "layer_statistics",
    "layer_table",
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
    "shared_types",
    "shuffled_labels",
    "spr1_edges",
    "srl_edges",
    "train_probes",
    "write_edges",
]
