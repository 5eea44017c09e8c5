"""The batches of a training run depend on the seed and the iteration alone."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.data.batches import ResumableBatches
from clsloc.data.train_data import build_train_loader
from clsloc.data.train_loader import TrainLoader, seed_generators, seeded
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm

SIZES = [(8, 6), (6, 8), (8, 6), (6, 6), (6, 8), (10, 4), (8, 6)]  # (width, height)


def draw(sample):
    """A mapper that uses all three generators, as augmentations may."""
    return sample | {
        "draws": (random.random(), np.random.rand(), float(torch.rand(())), sample["index"])
    }


def read(sample):
    Image.open(sample["file_name"]).load()
    return sample


def dataset():
    return [
        {"index": i, "file_name": f"{i}.png", "width": w, "height": h}
        for i, (w, h) in enumerate(SIZES)
    ]


def loader(batch_size=2, **kwargs) -> TrainLoader:
    settings = {
        "mapper": draw,
        "make_sampler": lambda seed: TrainingSampler(len(SIZES), seed=seed),
        "seed": 5,
        "wide": np.array([w > h for w, h in SIZES]),
    }
    return TrainLoader(dataset(), batch_size=batch_size, **settings | kwargs)


def take(loader: TrainLoader, count: int) -> list:
    return [
        [sample["draws"] for sample in batch] for batch in itertools.islice(iter(loader), count)
    ]


def test_batches_by_hand():
    # Wide: 0, 2, 5, 6. The stream 0 1 2 3 4 5 6 fills the wide bucket first (0, 2), then the
    # other one (1, 3); 4 waits for the next upright image.
    wide = np.array([w > h for w, h in SIZES])
    batches = list(ResumableBatches(range(7), 2, wide=wide))
    assert batches == [[(0, 0), (2, 2)], [(1, 1), (3, 3)], [(5, 5), (6, 6)]]
    assert list(ResumableBatches(range(7), 2, wide=wide, start=2)) == batches[2:]
    assert list(ResumableBatches(range(7), 2)) == [
        [(0, 0), (1, 1)],
        [(2, 2), (3, 3)],
        [(4, 4), (5, 5)],
    ]


def test_processes_share_each_batch():
    whole = list(ResumableBatches(range(12), 4))
    shares = [list(ResumableBatches(range(12), 4, rank=r, world_size=2)) for r in range(2)]
    for batch, first, second in zip(whole, *shares):
        assert sorted(first + second) == batch


@pytest.mark.parametrize("grouping", [True, False])
def test_the_number_of_workers_does_not_matter(grouping):
    settings = {} if grouping else {"wide": None}
    one = take(loader(**settings), 9)
    assert one == take(loader(**settings, num_workers=2), 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_started_later_goes_on_as_the_first_one(workers):
    resumed = loader(num_workers=workers)
    resumed.start = 5
    assert take(resumed, 4) == take(loader(), 9)[5:]


def test_seeds_differ_and_samples_differ():
    first, second = take(loader(), 6), take(loader(seed=6), 6)
    assert first != second
    draws = [sample[:3] for batch in first for sample in batch]
    assert len(set(draws)) == len(draws)


def test_two_processes_see_what_one_sees(monkeypatch):
    whole = take(loader(batch_size=4), 5)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(loader(batch_size=4), 5))
    assert [sorted(a + b) for a, b in zip(*shares)] == [sorted(batch) for batch in whole]


def test_repeat_factor_sampling_is_replayed_too():
    def make(seed):
        return RepeatFactorTrainingSampler(torch.linspace(1, 2.5, len(SIZES)), seed=seed)

    resumed = loader(make_sampler=make)
    resumed.start = 4
    assert take(resumed, 3) == take(loader(make_sampler=make), 7)[4:]


def test_loading_leaves_the_generators_of_the_training_step_alone():
    seed_generators(1, 2)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    seed_generators(1, 2)
    take(loader(), 3)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_seeded_is_a_function_of_its_key():
    def values(*key):
        with seeded(*key):
            return random.random(), np.random.rand(), torch.rand(()).item()

    assert values(1, 2) == values(1, 2)
    assert len({values(1, 2), values(2, 1), values(1, 2, 0), values(12)}) == 4


def test_the_generators_of_gpus_are_seeded_by_a_step_and_not_by_a_sample(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    take(loader(), 1)
    assert seeds == []
    seed_generators(1, 2)
    assert seeds == [torch.initial_seed()]
    with seeded(1, 2):
        assert torch.initial_seed() == seeds[0]  # the CPU's numbers are those of a step


@pytest.fixture
def build(forget_datasets):
    """The loader of a config: of four images, two wider than high, one has a rare object."""

    def build(**keys):
        rare = {"bbox": [0, 0, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        usual = rare | {"category_id": 0}
        samples = [
            sample | {"image_id": i, "annotations": [usual, rare] if i == 0 else [usual]}
            for i, sample in enumerate(dataset()[:4])
        ]
        DatasetCatalog.register("four", lambda: samples)
        cfg = setup_cfg(freeze=False)
        cfg.DATASETS.TRAIN = ("four",)
        cfg.DATALOADER.update(keys)
        return build_train_loader(cfg, seed=0, mapper=draw)

    return build


@pytest.mark.parametrize("grouping", [True, False])
def test_a_config_says_whether_batches_are_grouped(build, grouping, monkeypatch):
    # To unpickle each sample of a large dataset would take long.
    monkeypatch.setattr(DatasetFromList, "__getitem__", lambda self, index: pytest.fail("read"))
    wide = build(ASPECT_RATIO_GROUPING=grouping).wide
    assert (wide.tolist() if grouping else wide) == (
        [True, False, True, False] if grouping else None
    )


@pytest.mark.parametrize(("square_root", "times"), [(True, 2), (False, 4)])
def test_how_often_a_rare_object_comes(build, square_root, times):
    """In a quarter of the images, wanted in all of them: four times, of which the root is two."""
    built = build(
        SAMPLER_TRAIN="RepeatFactorTrainingSampler", REPEAT_THRESHOLD=1.0, REPEAT_SQRT=square_root
    )
    epoch = itertools.islice(built.make_sampler(0)._infinite_indices(), 3 + times)
    assert Counter(epoch) == {0: times, 1: 1, 2: 1, 3: 1}


def test_a_batch_that_cannot_be_shared_out_is_a_sentence(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match="IMS_PER_BATCH 4 cannot be shared out among 3"):
        loader(batch_size=4)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_bad_image_is_a_sentence(tmp_path, monkeypatch, workers, damage):
    monkeypatch.chdir(tmp_path)
    for i in range(len(SIZES)):
        noise = np.random.default_rng(i).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{i}.png")
    good = (tmp_path / "3.png").read_bytes()
    if damage == "missing":
        (tmp_path / "3.png").unlink()
    else:
        (tmp_path / "3.png").write_bytes(good[:2000] if damage == "truncated" else b"hello")
    with pytest.raises(UserError, match=r"^The image '3.png' (does not exist|cannot be read)"):
        for _ in itertools.islice(loader(mapper=read, num_workers=workers), 8):
            pass


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_subset_follows_from_the_seed(seed, build):
    loader = build(SAMPLER_TRAIN="RandomSubsetTrainingSampler", RANDOM_SUBSET_RATIO=0.5)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    chosen = set(itertools.islice(iter(loader.make_sampler(seed)), 20))
    assert chosen == set(order[:2].tolist())
