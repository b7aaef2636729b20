"""What tests of edge tasks and their files share."""

from hypothesis import strategies as st

from bertology.edge_probing.tasks import EdgeTask, Record, Target

WORD = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4)
LABELS = ("NP", "VP", "a b", "é")


@st.composite
def tasks(draw):
    """Random spans over random words; pairs in all targets or in none, several labels or none."""
    sides = draw(st.sampled_from((1, 2)))
    records = []
    for number in range(draw(st.integers(1, 4))):
        words = tuple(draw(st.lists(WORD, min_size=1, max_size=5)))
        span = st.tuples(st.integers(0, len(words)), st.integers(0, len(words))).map(sorted).map(tuple)
        span = span.filter(lambda s: s[0] < s[1])
        chosen = st.lists(st.sampled_from(LABELS), unique=True, max_size=3).map(tuple)
        target = st.builds(
            Target, span, chosen, span if sides == 2 else st.none(), st.sampled_from(("", "x", '{"a": 1}'))
        )
        targets = tuple(draw(st.lists(target, min_size=1, max_size=4)))
        records.append(Record(words, targets, draw(st.sampled_from((f"one {number}", "")))))
    return EdgeTask.of("random", records, labels=LABELS, counted=draw(st.sampled_from((None, LABELS[1:]))))


def task_of(*labels, name="task"):
    """A text for each label, of one word and one target."""
    return EdgeTask.of(
        name, [Record((f"w{n}",), (Target((0, 1), (label,)),), f"r{n}") for n, label in enumerate(labels)]
    )
