"""What tests of coreference and its rules share."""

from bertology.corpora.documents import Document, Mention
from oracles import coreference as oracles

CAT = Document(
    ("the", "cat", "sat", "on", "a", "mat", "and", "the", "cat", "purred", "under", "the", "stars"),
    (
        Mention(0, 2, 1, 1, "nominal"), Mention(4, 6, 5, 2, "nominal"), Mention(7, 9, 8, 1, "proper"),
        Mention(11, 13, 12, 2, "pronoun"),
    ),
    "cat",
)  # fmt: skip
RANDOM = [CAT, *oracles.random_documents(20)]
