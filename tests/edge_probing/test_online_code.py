import math

import pytest
import torch

from bertology.edge_probing.code_length import PORTIONS, CodeLength, online_code
from bertology.edge_probing.scores import bits_of
from bertology.errors import DataError, ShapeError
from oracles import layer_statistics as oracles

pytestmark = pytest.mark.any_transformers

# Code length


def counting(labels, seen_by=None):
    """A model that knows how often a label was true (Laplace's rule); several of them at once, of other labels each."""

    def fit(train):
        if seen_by is not None:
            seen_by.append(train)
        p = [(sum(each[i] for i in train) + 1) / (len(train) + 2) for each in labels]

        def predict(block):
            bits = [sum(-math.log2(q if each[i] else 1 - q) for i in block) for q, each in zip(p, labels, strict=True)]
            return torch.tensor(bits)

        return predict

    return fit


def check_online(found, labels, ends):
    def probability(seen, example):
        p = (sum(labels[i] for i in seen) + 1) / (len(seen) + 2)
        return p if labels[example] else 1 - p

    expected = oracles.online_code(range(len(labels)), ends, lambda example: 1.0, probability)
    assert found == pytest.approx(expected, rel=1e-6)


def test_online_code_equals_loops():
    generator = torch.Generator().manual_seed(0)
    labels = [(torch.rand(1000, generator=generator) < share).int().tolist() for share in (0.5, 0.1)]
    trained = []
    found = online_code(counting(labels, trained), uniform=torch.ones(1000))
    ends = [1, 2, 4, 8, 16, 32, 62, 125, 250, 500, 1000]  # METHODS' portions in percent: 0.1 to 100
    assert found.ends.tolist() == ends
    assert trained == [range(end) for end in ends[:-1]]
    assert found.bits.shape == (11, 2)
    assert found.bits[0].tolist() == [1, 1]
    for number, each in enumerate(labels):
        check_online(found.online[number].item(), each, ends)
        with pytest.raises(AssertionError):
            check_online(found.online[number].item(), each, [2, *ends[2:]])
        with pytest.raises(AssertionError):
            check_online(found.online[number].item(), [1 - each[0], *each[1:]], ends)
    assert found.compression.tolist() == [1000 / bits for bits in found.online.tolist()]
    assert found.compression[0] < 1 < found.compression[1]


def test_a_predictor_that_knows_all_pays_for_the_first_block_alone():
    targets = torch.tensor([3, 1, 2, 2, 5, 1, 1, 1, 2, 2])
    found = online_code(lambda train: lambda block: 0.0, uniform=targets * 4, portions=(0.2, 0.7, 1))
    assert found.ends.tolist() == [2, 7, 10]
    assert found.uniform.tolist() == [16, 44, 20]
    assert found.online.tolist() == [16]
    assert found.compression.tolist() == [5]
    assert str(found).splitlines() == [
        "| probe | bits | compression |", "|---|---|---|", "| 0 | 16 | 5.00 |",
        "10 records in 3 blocks, 80 bits in uniform code",
    ]  # fmt: skip


def test_one_that_knows_nothing_pays_the_uniform_code():
    """Logits of 0 are one bit for each label of each target: compression 1."""

    def predict(block):
        return bits_of(torch.zeros(3, len(block), 7), torch.zeros(len(block), 7))

    found = online_code(lambda train: predict, uniform=torch.full((200,), 7), names=("0", "1", "2"), progress="blocks")
    assert found.compression.tolist() == pytest.approx([1] * 3)
    assert found.labels == ("0", "1", "2")


@pytest.mark.parametrize(("many", "ends"), [(2, [1, 2]), (10, [1, 2, 5, 10]), (100, [1, 3, 6, 12, 25, 50, 100])])
def test_small_data_makes_fewer_blocks(many, ends):
    found = online_code(lambda train: lambda block: float(len(block)), uniform=torch.ones(many))
    assert found.ends.tolist() == ends
    assert found.bits.flatten().tolist() == [end - start for start, end in zip([0, *ends], ends, strict=False)]


def test_bits_of_logits():
    logits, gold = torch.randn(2, 5, 3, dtype=torch.float64) * 3, (torch.rand(5, 3) < 0.5).float()
    for probe in range(2):
        bits = 0.0
        for target in range(5):
            for label in range(3):
                p = 1 / (1 + math.exp(-logits[probe, target, label].item()))
                bits -= math.log2(p if gold[target, label] else 1 - p)
        assert bits_of(logits, gold)[probe].item() == pytest.approx(bits)
        assert bits_of(logits[probe], gold).item() == pytest.approx(bits)
    # Where a probability rounds to 0 or 1, logits still tell bits.
    assert bits_of(torch.tensor([[-200.0]]), torch.ones(1, 1)).item() == pytest.approx(200 / math.log(2))
    with pytest.raises(ShapeError, match=r"gold \[target, label\] = \[5, 3\], got \[2, 4, 3\]"):
        bits_of(logits[:, :4], gold)


def test_bits_that_are_none():
    def run(*answers, **options):
        left = list(answers)
        return online_code(lambda train: lambda block: left.pop(0), portions=(0.1, 0.5, 1), **options)

    ten = torch.ones(10)
    for wrong in (math.inf, math.nan, -1.0):
        with pytest.raises(DataError, match=r"the bits of records 1 to 4 are .*: wanted finite numbers of 0 or more"):
            run(wrong, uniform=ten)
    with pytest.raises(ShapeError, match=r"are \[probe\], \[2\] as of the block before, got \[3\]"):
        run(torch.ones(2), torch.ones(3), uniform=ten)
    with pytest.raises(ShapeError, match=r"are \[probe\], one number a probe, got \[2, 2\]"):
        run(torch.ones(2, 2), uniform=ten)
    with pytest.raises(ShapeError, match=r"names must be \[probe\] = \[2\], got 1"):
        run(torch.ones(2), torch.ones(2), uniform=ten, names=["a"])
    with pytest.raises(ShapeError, match=r"uniform must be \[example\], the bits of each record, got \[2, 5\]"):
        run(uniform=torch.ones(2, 5))
    for wrong in (-ten, ten * 0, ten * math.nan, ten * math.inf):
        with pytest.raises(DataError, match="uniform must be finite bits, 0 or more and not all 0, got a sum of"):
            run(uniform=wrong)


def test_portions_that_are_none():
    for wrong in ((), (0.5,), (0.5, 0.2, 1), (0.0, 1), (0.5, 0.5, 1), (0.5, 2)):
        with pytest.raises(DataError, match="portions must be shares that ascend to 1, got"):
            online_code(lambda train: lambda block: 0.0, uniform=torch.ones(10), portions=wrong)
    for told, many, portions in (("1 record", 1, PORTIONS), ("10 records", 10, (0.01, 1))):
        with pytest.raises(DataError, match=f"{told} in 1 block at portions .*: wanted two or more"):
            online_code(lambda train: lambda block: 0.0, uniform=torch.ones(many), portions=portions)


def test_code_lengths_are_saved_and_read(tmp_path):
    found = online_code(counting([[0, 1] * 50, [0, 0] * 50]), uniform=torch.ones(100), names=("0", "12"))
    found.save(tmp_path / "a.safetensors")
    read = CodeLength.load(tmp_path / "a.safetensors")
    assert str(read) == str(found)
    assert torch.equal(read.bits, found.bits)
