"""What is wrong with the input of a run comes as one sentence with status 2, never a traceback."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.engine import argument_parser, main, run, setup_cfg
from clsloc.engine.checks import check_best_metric, check_classes
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog

TINY = """
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_BOX_HEAD: {FC_DIM: 16}
  ROI_HEADS: {NUM_CLASSES: 2}
  DEVICE: cpu
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2}
DATASETS: {TRAIN: [pets], TEST: [pets]}
DATALOADER: {NUM_WORKERS: 0}
SEED: 1
"""
BOXES = [(3, (0, 0, 100, 100)), (7, (100, 0, 90, 100))]

pytestmark = pytest.mark.usefixtures("forget_datasets")


@pytest.fixture
def data(coco_folder):
    """Two images with two objects each; category ids 3 and 7."""
    json_file, root = coco_folder(BOXES, BOXES)
    for name in ("0.png", "1.png"):
        noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{root}/{name}")
    return json_file, root


@pytest.fixture
def parse(data, tmp_path):
    def parse(*words, config=TINY):
        file = tmp_path / "tiny.yaml"
        file.write_text(config)
        flags = [word for word in words if word.startswith("--")]
        overrides = [word for word in words if not word.startswith("--")]
        where = [] if "OUTPUT_DIR" in overrides else ["OUTPUT_DIR", str(tmp_path / "out")]
        words = ["--config-file", str(file), "--coco", "pets", *data, *flags, *overrides, *where]
        return argument_parser().parse_args(words)

    return parse


@pytest.fixture
def sentence(parse, capfd, monkeypatch):
    """Runs and returns what stood on stderr."""
    # Loggers of earlier tests write to streams that pytest has closed since.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def sentence(*words, args=None, **kwargs):
        capfd.readouterr()
        assert run(args or parse(*words, **kwargs)) == 2
        error = capfd.readouterr().err
        lines = [line for line in error.splitlines() if "Warning" not in line and line.strip()]
        assert "Traceback" not in error
        return lines[-1]

    return sentence


def edit(json_file, change):
    with open(json_file) as file:
        content = json.load(file)
    change(content)
    with open(json_file, "w") as file:
        json.dump(content, file)


def test_the_data_itself_is_fine(parse, tmp_path):
    # Among it: category ids with gaps, and the classes stored with the run.
    main(parse())
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["thing_classes"] == ["cat", "dog"]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Training on 2 images for 2 iterations of 2 images, 2.0 epochs" in log


def test_missing_and_unreadable_configs(sentence, parse, tmp_path):
    args = parse()
    args.config_file = str(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml' does not exist" in sentence(args=args)
    assert "cannot be read" in sentence(config="MODEL: [")
    assert "cannot be read" in sentence(config="A: !!python/object/apply:os.system ['true']")


def test_unknown_keys_and_values(sentence):
    assert "SOLVER.NO_SUCH" in sentence("SOLVER.NO_SUCH", "1")
    assert "NO_SUCH_NODE" in sentence(config=TINY + "NO_SUCH_NODE: {A: 1}\n")
    assert "stands alone" in sentence("SOLVER.MAX_ITER")


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [
        ("MODEL.ROI_HEADS.NAME", "StandardRoIHeads", "StandardROIHeads"),
        ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", "GeneralizedRCNN"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_bakbone", "build_resnet_fpn_backbone"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RNP", "RPN"),
    ],
)
def test_unknown_registry_names(sentence, key, wrong, meant):
    text = sentence(key, wrong)
    assert f"{key} '{wrong}' is not registered; did you mean" in text and meant in text


def test_unknown_datasets(sentence):
    assert "'pest' is not registered; did you mean pets" in sentence("DATASETS.TEST", "('pest',)")
    assert "'pest' is not registered" in sentence("DATASETS.TRAIN", "('pest',)")
    assert "DATASETS.TRAIN is empty" in sentence("DATASETS.TRAIN", "()")


def test_a_wrong_class_count(sentence):
    text = sentence("MODEL.ROI_HEADS.NUM_CLASSES", "80")
    assert "'pets' has 2 classes, cat, dog; set MODEL.ROI_HEADS.NUM_CLASSES 2" in text
    text = sentence("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "80")
    assert "set MODEL.RETINANET.NUM_CLASSES 2" in text


def test_train_and_test_sets_of_other_classes(sentence, tiny_digits):
    assert "have different classes" in sentence("DATASETS.TEST", "('digits_val',)")


def test_missing_weights(sentence, tmp_path):
    nowhere = str(tmp_path / "nowhere.pth")
    assert "nowhere.pth" in sentence("MODEL.WEIGHTS", nowhere)
    assert "nowhere.pth" in sentence("--eval-only", "MODEL.WEIGHTS", nowhere)
    assert "There are no weights" in sentence("--eval-only", "MODEL.WEIGHTS", "")
    assert "nothing to resume" in sentence("--resume")
    assert "nothing to resume" in sentence("--resume", "--eval-only")


def test_weights_of_another_class_count(sentence, parse, tmp_path):
    main(parse())
    weights = tmp_path / "out" / "model_final.pth"
    content = torch.load(weights, weights_only=True)
    for name in ("cls_score.weight", "cls_score.bias"):
        name = f"roi_heads.box_predictor.{name}"
        content["model"][name] = content["model"][name][:2]
    torch.save(content, tmp_path / "two.pth")
    text = sentence("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "two.pth"))
    assert "cls_score" in text and "number of classes" in text


@pytest.mark.parametrize("flags", [(), ("--eval-only",)], ids=["training", "evaluation"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_missing_or_truncated_image(sentence, parse, data, tmp_path, flags, workers):
    weights = ()
    if flags:
        main(parse("DATASETS.TEST", "()"))
        weights = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    words = (*flags, *weights, "DATALOADER.NUM_WORKERS", workers)
    image = f"{data[1]}/1.png"
    shutil.copy(image, f"{data[1]}/whole.png")
    with open(image, "r+b") as file:
        file.truncate(5000)
    assert "1.png' cannot be read" in sentence(*words)
    shutil.os.unlink(image)
    assert "1.png' does not exist" in sentence(*words)


def test_an_image_of_another_size(sentence, data):
    Image.new("RGB", (30, 20)).save(f"{data[1]}/1.png")
    assert "another size than the annotations say" in sentence()


def test_broken_annotation_files(sentence, data):
    edit(data[0], lambda content: content["images"][0].pop("height"))
    assert "instances.json' cannot be used (it is wrong at 'height')" in sentence()
    with open(data[0], "w") as file:
        file.write('{"images": [')
    assert "instances.json' is no valid JSON" in sentence()
    with open(data[0], "w") as file:
        file.write("[]")
    assert "instances.json" in sentence()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0].pop("bbox"), "an object of the image 0 has no box"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "has the box [1, 2, 3]"),
        (lambda c: c["annotations"][0].update(bbox=["1", 2, 3, 4]), "the box ['1', 2, 3, 4]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, math.nan, 4]), "the box [1, 2, nan, 4]"),
        (lambda c: c["images"][1].update(width="200"), "image 1 has height 150 and width '200'"),
    ],
)
def test_values_that_would_fail_in_the_middle_of_training(sentence, data, change, reason):
    edit(data[0], change)
    text = sentence()
    assert reason in text and "look at it with tools/check_dataset.py" in text


def test_a_test_set_without_images_is_found_before_training(sentence, parse, data, tmp_path):
    empty = tmp_path / "empty.json"
    shutil.copy(data[0], empty)
    edit(empty, lambda content: content.update(images=[], annotations=[]))
    args = parse("DATASETS.TEST", "('none',)")
    args.coco.append(["none", str(empty), data[1]])
    assert "The dataset 'none' has no images to evaluate on" in sentence(args=args)
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_a_test_set_without_an_evaluator_is_found_before_training(sentence, parse, flags):
    DatasetCatalog.register("other", lambda: [{"file_name": "0.png"}])
    MetadataCatalog.get("other").set(evaluator_type="segments", thing_classes=["cat", "dog"])
    args = parse(*flags, "DATASETS.TEST", "('other',)")
    assert "evaluator_type 'segments', for which there is no evaluator" in sentence(args=args)


@pytest.mark.parametrize(
    ("metric", "sets", "reason"),
    [
        ("AP", "('pets',)", "names no metric of the 1 dataset(s)"),
        ("bbox/AP51", "('pets',)", "is no metric of bbox; did you mean AP"),
        ("bbox/AP", "()", "the form is bbox/AP"),
        ("bbox/AP", "('pets', 'pets2')", "the form is pets/bbox/AP"),
        ("pets/bbox/AP", "('pets',)", "the form is bbox/AP"),
        ("bbox", "('pets',)", "the form is bbox/AP"),
        ("pets3/bbox/AP", "('pets', 'pets2')", "the form is pets/bbox/AP"),
        ("pets2/bbox/AP51", "('pets', 'pets2')", "is no metric of bbox"),
    ],
)
def test_a_metric_that_cannot_be_the_best_is_found_before_training(
    sentence, parse, data, metric, sets, reason
):
    args = parse("CLSLOC.BEST.METRIC", metric, "DATASETS.TEST", sets)
    args.coco.append(["pets2", *data])
    assert reason in sentence(args=args)


@pytest.mark.parametrize(
    ("metric", "sets"),
    [("bbox/AP", ["a"]), ("bbox/AP-tv/monitor", ["a"]), ("b/c/bbox/AP-tv/monitor", ["a", "b/c"])],
)
def test_metrics_that_can_be_the_best(metric, sets):
    cfg = setup_cfg(freeze=False)
    cfg.DATASETS.TEST, cfg.CLSLOC.BEST.METRIC = sets, metric
    check_best_metric(cfg)


def test_annotations_of_boxes_alone_are_enough(parse, data, tmp_path):
    def change(content):
        for annotation in content["annotations"]:
            annotation.pop("area", None)
            annotation["iscrowd"] = None

    edit(data[0], change)
    main(parse())
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "pets: 4 objects have no area or no iscrowd" in log
    assert (tmp_path / "out" / "results.json").exists()


def test_resuming_a_run_that_began_in_a_used_folder(sentence, parse, tmp_path):
    main(parse())
    out = tmp_path / "out"
    assert (out / "results.json").exists() and (out / "last_checkpoint").exists()
    # Broken off before its first checkpoint: what --resume finds must not be the run before.
    assert "gone.pth" in sentence("MODEL.WEIGHTS", "gone.pth")
    assert (out / "last_checkpoint").exists()  # it did not begin
    text = sentence("SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False",
                    "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "6")  # fmt: skip
    assert "Training diverged" in text
    assert not (out / "results.json").exists()
    assert "There is nothing to resume" in sentence("--resume")
    assert (out / "model_final.pth").exists()


def test_an_annotation_of_an_unknown_category(sentence, data):
    edit(data[0], lambda content: content["annotations"][0].update(category_id=99))
    assert "99" in sentence()


def test_a_missing_annotation_file(sentence, parse, data):
    args = parse()
    args.coco = [["pets", "nowhere.json", data[1]]]
    assert "nowhere.json', which does not exist" in sentence(args=args)


def test_a_box_without_area_and_an_image_without_objects_are_trained_around(parse, data, tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = [10, 10, 0, 5]
        content["annotations"] = content["annotations"][:2]  # image 1 has none

    edit(data[0], change)
    main(parse("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"))
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value.float()).all() for value in weights.values())


def test_no_image_to_train_on(sentence, data):
    edit(data[0], lambda content: content["annotations"].clear())
    assert "hold no image to train on" in sentence()


def test_a_batch_that_is_no_batch(sentence):
    assert "SOLVER.IMS_PER_BATCH 0" in sentence("SOLVER.IMS_PER_BATCH", "0")


def test_an_output_folder_that_cannot_be(sentence, tmp_path):
    (tmp_path / "file").write_text("")
    text = sentence("OUTPUT_DIR", str(tmp_path / "file" / "out"))
    assert "a part of this path is a file" in text


def test_a_full_disk(sentence, tmp_path, monkeypatch):
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    text = sentence("SOLVER.CHECKPOINT_PERIOD", "1")
    assert "model_0000000.pth' could not be written (No space left on device); free some" in text
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_divergence_names_step_losses_and_images(sentence):
    text = sentence("SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False",
                    "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "6")  # fmt: skip
    assert text.startswith("Training diverged at iteration ")
    assert "learning rate" in text and "0.png" in text and "losses:" in text


def test_a_changed_batch_with_the_old_learning_rate_is_warned_about(parse, tmp_path):
    main(parse("SOLVER.IMS_PER_BATCH", "1"))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "was chosen for batches of 2 images" in log and "consider SOLVER.BASE_LR 0.0075" in log
    assert "stay at random values" not in log


def test_frozen_stages_without_weights_are_warned_about(parse, tmp_path):
    main(parse("MODEL.BACKBONE.FREEZE_AT", "2", "DATASETS.TEST", "()"))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "MODEL.BACKBONE.FREEZE_AT is 2: the first stages of the backbone stay at random" in log


def test_the_reference_world_size_scales_batch_rate_and_schedule(parse, tmp_path):
    main(parse("SOLVER.REFERENCE_WORLD_SIZE", "2", "DATASETS.TEST", "()"))
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 3  # one process instead of two: half the batch, twice as long
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "for 4 iterations of 1 images" in log and "was chosen for" not in log


def test_two_images_with_one_id(sentence, data):
    def change(content):
        for image in content["images"]:
            image["id"] = content["images"][0]["id"]

    edit(data[0], change)
    assert "1 image ids are there more than once, such as 0" in sentence()


@pytest.mark.parametrize("value", ["0", 2])
def test_a_crowd_mark_that_is_none(sentence, data, value):
    edit(data[0], lambda content: content["annotations"][0].update(iscrowd=value))
    text = sentence()
    assert f"has the iscrowd {value!r}" in text and "look at it with tools/check_dataset.py" in text


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_a_refused_command_leaves_the_config_of_the_run_before(sentence, parse, tmp_path, flags):
    main(parse())
    stored = (tmp_path / "out" / "config.yaml").read_text()
    assert "NUM_CLASSES" in sentence(*flags, "MODEL.ROI_HEADS.NUM_CLASSES", "5")
    assert (tmp_path / "out" / "config.yaml").read_text() == stored


@pytest.mark.parametrize("folder", ["", "/proc/runs"])
def test_a_folder_that_cannot_be_made(sentence, folder):
    text = sentence("OUTPUT_DIR", folder)
    assert "OUTPUT_DIR is empty" in text if not folder else "/proc/runs" in text


def test_resuming_with_another_model(sentence, parse):
    main(parse("DATASETS.TEST", "()"))
    retinanet = ("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "2",
                 "MODEL.RETINANET.IN_FEATURES", "['p2','p3','p4','p5']")  # fmt: skip
    for words in (retinanet, ("MODEL.ROI_BOX_HEAD.NUM_CONV", "1"), ("MODEL.RESNETS.DEPTH", "34")):
        text = sentence("--resume", *words)
        assert "model_final.pth' belongs to another config (" in text
        assert "resume with the config of that run, or choose another OUTPUT_DIR" in text


@pytest.mark.parametrize(
    "words", [("DATASETS.TRAIN",), ("DATASETS.TEST",), ("--eval-only", "DATASETS.TEST")]
)
def test_a_dataset_without_categories(sentence, parse, data, tmp_path, words):
    empty = tmp_path / "empty.json"
    shutil.copy(data[0], empty)
    edit(empty, lambda content: content.update(categories=[], annotations=[]))
    args = parse(*words, "('none',)")
    args.coco.append(["none", str(empty), data[1]])
    assert "empty.json' cannot be used (it lists no categories)" in sentence(args=args)
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER 0 trains nothing; give at least 1"),
        ("SOLVER.MAX_ITER", "-3", "SOLVER.MAX_ITER -3 trains nothing; give at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "give one above 0, such as the default 5000"),
        ("MODEL.DEVICE", "gpu", "MODEL.DEVICE 'gpu' is no device; choose cpu, cuda, or cuda:N"),
        ("INPUT.RANDOM_FLIP", "left", "INPUT.RANDOM_FLIP must be 'horizontal', 'vertical' or"),
    ],
)
def test_a_schedule_or_value_that_cannot_be(sentence, tmp_path, key, value, reason):
    assert reason in sentence(key, value)
    assert not list((tmp_path / "out").glob("*.pth"))


def test_evaluation_needs_no_schedule(sentence):
    assert "There are no weights" in sentence("--eval-only", "SOLVER.MAX_ITER", "0")


def test_a_dataset_that_names_no_class(forget_datasets):
    DatasetCatalog.register("bare", lambda: [])
    MetadataCatalog.get("bare").set(thing_classes=[])
    with pytest.raises(UserError, match="'bare' has no classes"):
        check_classes(setup_cfg(freeze=False), ["bare"])
    MetadataCatalog.get("bare").thing_classes.append("cat")
    with pytest.raises(UserError, match="NUM_CLASSES 1"):
        check_classes(setup_cfg(freeze=False), ["bare"])
