"""Catalogs, samplers, wrapped datasets and loaders, on either Detectron2."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
)
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)


@pytest.fixture
def name():
    """A name for a dataset, forgotten after the test."""
    name = "runtime_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def first(iterable, n: int) -> list:
    return list(itertools.islice(iterable, n))


# Catalogs


def test_dataset_catalog(name):
    DatasetCatalog.register(name, lambda: [1, 2])
    assert DatasetCatalog.get(name) == [1, 2]
    assert name in DatasetCatalog.list()
    with pytest.raises(AssertionError, match=name):
        DatasetCatalog.register(name, lambda: [])
    DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match=name):
        DatasetCatalog.get(name)


def test_metadata_is_set_once(name):
    meta = MetadataCatalog.get(name)
    assert meta is MetadataCatalog.get(name)
    meta.set(thing_classes=["a"]).thing_classes = ["a"]
    with pytest.raises(AssertionError, match="thing_classes"):
        meta.thing_classes = ["b"]
    with pytest.raises(AttributeError, match="colors"):
        _ = meta.colors
    assert meta.get("colors", 3) == 3
    assert meta.as_dict() == {"name": name, "thing_classes": ["a"]}


def test_coco_and_voc_are_registered():
    assert {"coco_2014_minival", "coco_2017_train", "coco_2017_val"} <= set(DatasetCatalog.list())
    assert {"voc_2007_trainval", "voc_2007_test", "voc_2012_val"} <= set(DatasetCatalog.list())
    coco = MetadataCatalog.get("coco_2017_val")
    assert coco.evaluator_type == "coco"
    assert coco.json_file.endswith("coco/annotations/instances_val2017.json")
    assert len(coco.thing_classes) == 80 and coco.thing_classes[11] == "stop sign"
    voc = MetadataCatalog.get("voc_2007_test")
    assert (voc.evaluator_type, voc.year, voc.split) == ("pascal_voc", 2007, "test")
    assert voc.thing_classes[0] == "aeroplane" and len(voc.thing_classes) == 20


def test_coco_category_ids_have_gaps():
    id_map = _get_builtin_metadata("coco")["thing_dataset_id_to_contiguous_id"]
    assert id_map[1] == 0 and id_map[13] == 11 and id_map[90] == 79
    assert 12 not in id_map
    with pytest.raises(KeyError):
        _get_builtin_metadata("no such dataset")


# Samplers


def test_training_sampler_shows_every_sample_once_an_epoch():
    stream = first(TrainingSampler(7, seed=0), 14)
    assert sorted(stream[:7]) == sorted(stream[7:]) == list(range(7))
    assert stream[:7] != stream[7:]
    assert stream == first(TrainingSampler(7, seed=0), 14)
    assert first(TrainingSampler(3, shuffle=False, seed=0), 5) == [0, 1, 2, 0, 1]


def test_training_sampler_order_is_that_of_detectron2():
    """Golden numbers of Detectron2 (main, June 2026)."""
    assert first(TrainingSampler(7, seed=3), 10) == [5, 3, 4, 6, 0, 2, 1, 2, 6, 3]
    repeats = RepeatFactorTrainingSampler(torch.tensor([1.0, 1.5, 2.3, 1.0, 3.7]), seed=4)
    assert first(repeats, 10) == [4, 4, 2, 4, 4, 2, 0, 1, 2, 3]
    subset = RandomSubsetTrainingSampler(9, 0.5, seed_shuffle=1, seed_subset=2)
    assert first(subset, 8) == [8, 3, 6, 0, 0, 6, 3, 8]


@pytest.mark.parametrize("size", [0, -1])
def test_training_sampler_refuses_an_empty_dataset(size):
    with pytest.raises(ValueError):
        TrainingSampler(size)


def test_random_subset_stays_the_same():
    stream = first(RandomSubsetTrainingSampler(10, 0.3, seed_shuffle=0, seed_subset=0), 30)
    assert all(count == 10 for count in Counter(stream).values())
    assert len(set(stream)) == 3


def test_repeat_factors_by_hand():
    # Category 0 is in 3 of 4 images, 1 in 1 of 4; the threshold is 1/2.
    samples = [{"annotations": [{"category_id": c} for c in cs]} for cs in ([0, 1], [0], [], [0])]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.5)
    torch.testing.assert_close(factors, torch.tensor([2**0.5, 1.0, 1.0, 1.0]))
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        samples, 0.5, sqrt=False
    )
    torch.testing.assert_close(factors, torch.tensor([2.0, 1.0, 1.0, 1.0]))


def test_repeat_factor_is_the_mean_number_of_repeats():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5]), seed=0)
    stream = first(sampler, 3500)
    assert stream.count(1) / stream.count(0) == pytest.approx(2.5, abs=0.1)


def test_inference_sampler_covers_the_dataset():
    sampler = InferenceSampler(5)
    assert list(sampler) == [0, 1, 2, 3, 4] and len(sampler) == 5


def test_grouped_batches_are_of_one_group():
    sampler = GroupedBatchSampler(SequentialSampler(range(7)), [0, 1, 1, 0, 1, 0, 0], 2)
    assert [*iter(sampler)] == [[1, 2], [0, 3], [5, 6]]
    with pytest.raises(ValueError):
        GroupedBatchSampler([0, 1], [0, 0], 2)


# Wrapping datasets


def test_dataset_from_list_gives_copies():
    source = [{"a": [1]}, {"b": 2}]
    for serialize in (True, False):
        dataset = DatasetFromList(source, serialize=serialize)
        dataset[0]["a"].append(5)
        assert len(dataset) == 2
        assert [dataset[0], dataset[1], dataset[-1]] == [{"a": [1]}, {"b": 2}, {"b": 2}]
    assert DatasetFromList(source, copy=False, serialize=False)[0] is source[0]


def test_map_dataset_replaces_what_the_function_refuses():
    dataset = MapDataset(DatasetFromList(list(range(6))), lambda x: None if x == 2 else x * 10)
    assert dataset[4] == 40 and len(dataset) == 6
    assert dataset[2] in {0, 10, 30, 40, 50}
    assert pickle.loads(pickle.dumps(dataset))[1] == 10


class Endless(IterableDataset):
    def __iter__(self):
        yield from itertools.count()


def test_map_dataset_of_an_iterable_skips():
    dataset = MapDataset(Endless(), lambda x: None if x % 2 else x)
    assert isinstance(dataset, IterableDataset)
    assert first(dataset, 3) == [0, 2, 4]


def test_to_iterable_dataset_follows_the_sampler():
    dataset = ToIterableDataset(DatasetFromList(list("abc")), TrainingSampler(3, False, 0))
    assert first(dataset, 4) == ["a", "b", "c", "a"]


def test_aspect_ratio_groups():
    sizes = [(2, 1), (1, 2), (1, 1), (3, 1), (1, 3)]
    samples = [{"width": w, "height": h, "i": i} for i, (w, h) in enumerate(sizes)]
    grouped = AspectRatioGroupedDataset(samples, 2)
    assert [[s["i"] for s in batch] for batch in grouped] == [[1, 2], [0, 3]]


# Loaders


@pytest.mark.parametrize("drop_last, count", [(True, 2), (False, 3)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_workers(num_workers, drop_last, count):
    dataset = DatasetFromList(list(range(10)))
    loader = build_batch_data_loader(
        dataset, InferenceSampler(10), 4, num_workers=num_workers, drop_last=drop_last
    )
    assert list(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]][:count]
    assert len(loader) == count


def test_batch_size_must_be_positive():
    dataset = DatasetFromList([1])
    with pytest.raises(AssertionError):
        build_batch_data_loader(dataset, InferenceSampler(1), 0)
    with pytest.raises(ValueError):
        build_batch_data_loader(dataset, InferenceSampler(1), 2, single_gpu_batch_size=2)


def test_train_loader_groups_by_aspect_ratio():
    samples = [{"width": 10 + 5 * (i % 2), "height": 12, "i": i} for i in range(8)]
    loader = build_detection_train_loader(samples, mapper=None, total_batch_size=2)
    for batch in first(loader, 20):
        assert len(batch) == 2 and batch[0]["width"] == batch[1]["width"]


def test_train_loader_of_an_iterable_dataset():
    loader = build_detection_train_loader(
        Endless(), mapper=lambda x: -x, total_batch_size=3, aspect_ratio_grouping=False
    )
    assert first(loader, 2) == [[0, -1, -2], [-3, -4, -5]]
    with pytest.raises(AssertionError):
        build_detection_train_loader(
            Endless(), mapper=None, sampler=TrainingSampler(3, seed=0), total_batch_size=3
        )


def test_test_loader_visits_every_sample_once():
    loader = build_detection_test_loader(list(range(5)), mapper=lambda x: x + 1, batch_size=2)
    assert list(loader) == [[1, 2], [3, 4], [5]]


def test_loaders_from_a_config(name):
    samples = [
        {"width": 2, "height": 1, "image_id": i, "annotations": [{"category_id": 0}]}
        for i in range(4)
    ]
    DatasetCatalog.register(name, lambda: [*samples, {"image_id": 9, "annotations": []}])
    MetadataCatalog.get(name).thing_classes = ["a"]
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 5
    batches = [build_detection_train_loader(cfg, mapper=lambda s: s) for _ in range(2)]
    batches = [[s["image_id"] for b in first(loader, 6) for s in b] for loader in batches]
    assert batches[0] == batches[1]
    assert sorted(batches[0][:4]) == [0, 1, 2, 3]  # the image without objects is left out
    assert len(build_detection_test_loader(cfg, name, mapper=lambda s: s)) == 5
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg, mapper=lambda s: s)


# Samples of registered datasets


def test_images_without_objects_are_left_out(name):
    samples = [
        {"annotations": []},
        {"annotations": [{"iscrowd": 1, "category_id": 0}]},
        {"annotations": [{"iscrowd": 1, "category_id": 0}, {"category_id": 0}]},
    ]
    DatasetCatalog.register(name, lambda: samples)
    assert get_detection_dataset_dicts(name) == samples[2:]
    assert get_detection_dataset_dicts([name], filter_empty=False) == samples


def test_datasets_that_cannot_be_used(name):
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])
    samples = []
    DatasetCatalog.register(name, lambda: samples)
    with pytest.raises(AssertionError, match=name):
        get_detection_dataset_dicts(name)
    samples.append({"annotations": []})
    with pytest.raises(AssertionError, match=name):
        get_detection_dataset_dicts(name)
    samples.append({"annotations": [{"category_id": 3}]})
    MetadataCatalog.get(name).thing_classes = ["a"]
    with pytest.raises(AssertionError, match="3"):
        get_detection_dataset_dicts(name)


def test_class_names_must_agree():
    for i, classes in enumerate((["a"], ["b"])):
        MetadataCatalog.get(f"consistency_{i}").thing_classes = classes
    with pytest.raises(ValueError, match="thing_classes"):
        detection_utils.check_metadata_consistency(
            "thing_classes", ["consistency_0", "consistency_1"]
        )


def test_proposals_are_loaded_best_first(tmp_path: Path):
    content = {
        "ids": [1, 2],
        "boxes": [np.zeros((1, 4)), np.array([[0, 0, 1, 1], [0, 0, 2, 2]])],
        "objectness_logits": [np.zeros(1), np.array([-1.0, 3.0])],
    }
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(content))
    (sample,) = load_proposals_into_dataset([{"image_id": "2"}], str(path))
    np.testing.assert_array_equal(sample["proposal_objectness_logits"], [3, -1])
    np.testing.assert_array_equal(sample["proposal_boxes"][0], [0, 0, 2, 2])
