"""Loaders that share a data set among processes: what they give twice is refused, and nothing else is."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler
from transformers import trainer_pt_utils

from bertology import shard_batches
from bertology.data.make_batches import _SizedMade
from bertology.errors import DataError
from bertology.streaming.samplers import check_sampler

pytestmark = pytest.mark.any_transformers


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return torch.tensor(range(self.count)[place])


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(torch.arange(self.count))


class SizedStream(Stream):
    def __len__(self):
        return self.count


class Unrepeated(DistributedSampler):
    """As lightning has it for prediction."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.total_size = len(self.dataset)
        self.num_samples = len(range(self.rank, self.total_size, self.num_replicas))


def torch_loader(kind=DistributedSampler, **options):
    def made(count, size, rank):
        return DataLoader(Numbers(count), batch_size=2, sampler=kind(Numbers(count), size, rank, **options))

    return made


def accelerated(data=Numbers, batch_size=2, drop_last=False, **options):
    def made(count, size, rank):
        prepare = pytest.importorskip("accelerate.data_loader").prepare_data_loader
        loader = DataLoader(data(count), batch_size=batch_size, drop_last=drop_last)
        options.setdefault("put_on_device", False)
        return prepare(loader, num_processes=size, process_index=rank, **options)

    return made


def trainers(data):
    def made(count, size, rank):
        shard = trainer_pt_utils.IterableDatasetShard(data(count), 2, num_processes=size, process_index=rank)
        return DataLoader(shard, batch_size=2)

    return made


def grouped_by_length(count, size, rank):
    sampler = trainer_pt_utils.DistributedLengthGroupedSampler(
        2, lengths=list(range(1, count + 1)), num_replicas=size, rank=rank
    )
    return DataLoader(Numbers(count), batch_size=2, sampler=sampler)


LOADERS = {
    "torch": torch_loader(shuffle=False),
    "torch shuffled": torch_loader(shuffle=True),
    "torch drop_last": torch_loader(drop_last=True),
    "unrepeated": torch_loader(Unrepeated, shuffle=False),
    "accelerate": accelerated(),
    "accelerate uneven": accelerated(even_batches=False),
    "accelerate split": accelerated(batch_size=4, split_batches=True),
    "accelerate drop_last": accelerated(drop_last=True),
    "accelerate stream": accelerated(SizedStream),
    "accelerate split stream": accelerated(SizedStream, batch_size=4, split_batches=True),
    "trainer stream": trainers(SizedStream),
    "trainer by length": grouped_by_length,
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(("count", "size"), [(5, 2), (8, 2), (12, 2), (12, 4), (8, 4), (7, 4), (3, 4), (16, 4)])
def test_what_comes_twice_is_refused_and_nothing_else(name, count, size):
    loaders = [LOADERS[name](count, size, rank) for rank in range(size)]
    seen = [number for loader in loaders for batch in loader for number in batch.tolist()]
    for loader in loaders:
        if len(set(seen)) < len(seen):
            with pytest.raises(DataError, match=r"gives .* to two processes, so that all have equally many"):
                check_sampler(loader)
        else:
            check_sampler(loader)


@pytest.mark.parametrize("made", [accelerated(Stream), trainers(Stream)])
def test_a_stream_whose_length_is_not_known_is_refused(made):
    with pytest.raises(DataError, match="gives the first examples, if their number cannot be divided"):
        check_sampler(made(8, 2, 0))
    check_sampler(DataLoader(Stream(8)))


def test_batches_that_process_0_sends_to_the_others_are_refused(monkeypatch):
    loader = accelerated(Numbers, dispatch_batches=True, put_on_device=True)(5, 2, 0)
    monkeypatch.setattr(loader, "state", type("State", (), {"num_processes": 2})(), raising=False)
    with pytest.raises(DataError, match="the DataLoaderDispatcher of the DataLoaderDispatcher gives 1 of 5 examples"):
        check_sampler(loader)


def test_a_share_of_a_datasets_dataset_is_taken():
    datasets = pytest.importorskip("datasets")
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    data = datasets.Dataset.from_dict({"x": list(range(7))})
    for whole in (data, data.to_iterable_dataset(num_shards=3)):
        seen = []
        for rank in range(2):
            loader = DataLoader(split(whole, rank, 2), batch_size=2)
            check_sampler(loader)
            seen += [number for batch in loader for number in batch["x"].tolist()]
        assert sorted(seen) == list(range(7))


def test_a_loader_inside_something_else_is_seen():
    tqdm = pytest.importorskip("tqdm").tqdm
    loader = torch_loader(shuffle=False)(5, 2, 0)
    texts = DataLoader(["a", "b", "c"], sampler=DistributedSampler(["a", "b", "c"], 2, 0))
    for batches in (tqdm(loader, disable=True), _SizedMade(texts, None)):
        with pytest.raises(DataError, match="the DistributedSampler of the .* gives 1 of . examples to two processes"):
            check_sampler(batches)


def test_what_is_shared_already_is_not_shared_again():
    with pytest.raises(DataError, match="the DistributedSampler of this DataLoader gives each process its share"):
        shard_batches(torch_loader()(8, 2, 0), (0, 2))
    with pytest.raises(DataError, match="the BatchSamplerShard of this DataLoaderShard gives each process its share"):
        shard_batches(accelerated()(8, 2, 0), (0, 2))
    assert len(list(shard_batches(DataLoader(Numbers(8)), (0, 2)))) == 4
