"""Training, evaluation and results.json on a few tiny images."""

import json
import sys
from pathlib import Path

import pytest
import torch

from clsloc.engine import Trainer, argument_parser, main, run, setup_cfg
from clsloc.engine.results import write_results
from clsloc.engine.tta import with_tta
from clsloc.evaluation.coco import REPORTED
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

DDOD_CONFIGS = Path(__file__).parents[2] / "projects" / "ddod" / "configs" / "digits"
TINY = """
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2}
"""


@pytest.fixture
def parse(tiny_digits, tmp_path):
    """Arguments for a run on tiny images, with further flags."""

    def parse(*flags):
        (tmp_path / "tiny.yaml").write_text(TINY)
        given = ["--config-file", str(tmp_path / "tiny.yaml"), *flags]
        return argument_parser().parse_args([*given, "OUTPUT_DIR", str(tmp_path / "out")])

    return parse


def test_train_then_evaluate_then_resume(parse, tmp_path):
    trained = main(parse())
    assert tuple(trained["bbox"]) == REPORTED
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(stored["metrics"]) == {f"bbox/{metric}" for metric in REPORTED}
    assert stored["seconds"] > 0 and stored["iterations"] == 2
    assert stored["versions"]["torch"] == torch.__version__
    assert "cores" in stored["hardware"] and "commit" in stored
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert "Made" not in (tmp_path / "out" / "log.txt").read_text()  # the digits were there

    (tmp_path / "out" / "results.json").unlink()
    args = parse("--eval-only")
    args.opts += ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    evaluated = main(args)
    assert evaluated["bbox"] == pytest.approx(trained["bbox"], nan_ok=True)
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["metrics"] == stored["metrics"]

    args = parse("--resume")
    args.opts += ["SOLVER.MAX_ITER", "3"]
    main(args)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "model_final.pth at iteration 2 of 3" in log
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 2


@pytest.mark.parametrize("config", ["faster_rcnn_R_18_FPN", "ddod_atss_R_18_FPN"])
def test_both_figures_with_test_time_augmentation(config, parse, tmp_path):
    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 80)"]
    args = parse()
    if config.startswith("ddod"):
        args.config_file = str(DDOD_CONFIGS / f"{config}.yaml")
        args.opts += [
            *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.DDOD.CONV_DIM", "32"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
            *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "MODEL.DEVICE", "cpu"),
        ]
    args.opts += augmented
    trained = main(args)
    assert set(trained) == {"bbox", "bbox_TTA"}
    assert tuple(trained["bbox_TTA"]) == REPORTED
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {f"bbox_TTA/{metric}" for metric in REPORTED} <= set(stored["metrics"])
    assert {f"bbox/{metric}" for metric in REPORTED} <= set(stored["metrics"])
    for folder in ("inference", "inference_TTA"):
        assert (tmp_path / "out" / folder / "coco_instances_results.json").is_file()

    args.eval_only, args.resume = True, True
    (tmp_path / "out" / "results.json").unlink()
    assert set(main(args)) == {"bbox", "bbox_TTA"}
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["metrics"] == stored["metrics"]

    args.eval_only = False  # trained to the end already: evaluated once more
    assert set(main(args)) == {"bbox", "bbox_TTA"}


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.RETINANET.NUM_CLASSES": "10"},
         "no test-time augmentation for MODEL.META_ARCHITECTURE 'RetinaNet'"),
        ({"TEST.AUG.MIN_SIZES": "()"}, "MIN_SIZES are lengths of at least 1, got ()"),
        ({"MODEL.LOAD_PROPOSALS": "True"}, "does not go with MODEL.LOAD_PROPOSALS"),
    ],
)  # fmt: skip
def test_augmentation_that_cannot_be_is_refused_before_training(keys, message, parse, capfd):
    args = parse()
    args.opts += ["TEST.AUG.ENABLED", "True", *(x for pair in keys.items() for x in pair)]
    assert run(args) == 2
    assert message in capfd.readouterr().err


def test_merging_views_after_soft_nms_is_warned_about(parse, caplog):
    cfg = setup_cfg(parse())
    model = Trainer.build_model(cfg)
    for soft_nms, warned in ((None, False), ({"method": "linear"}, True)):
        model.roi_heads.soft_nms = soft_nms
        with_tta(cfg, model)
        assert ("merged by NMS at MODEL.ROI_HEADS.NMS_THRESH_TEST 0.5" in caplog.text) == warned


def test_every_parameter_is_trained(parse):
    trainer = Trainer(setup_cfg(parse()))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_user_errors_become_a_sentence_and_status_2(parse, capfd):
    args = parse()
    args.opts += ["SOLVER.NO_SUCH_KEY", "1"]
    assert run(args) == 2
    error = capfd.readouterr().err
    assert "SOLVER.NO_SUCH_KEY" in error and "Traceback" not in error
    assert error.count("\n") == 1


def test_several_machines_need_an_address(parse, capfd):
    assert run(parse("--num-machines", "2")) == 2
    assert "--dist-url" in capfd.readouterr().err


@pytest.fixture
def launched(monkeypatch):
    """Two GPUs; instead of starting processes their number is noted."""
    numbers = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    module = sys.modules[run.__module__]
    monkeypatch.setattr(module, "launch", lambda main, number, **_: numbers.append(number))
    return numbers


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--num-gpus", "3"), "--num-gpus 3 is more than the 2 GPU(s) of this machine; give at"),
        (("--num-gpus", "0"), "--num-gpus 0 starts no process; give at least 1."),
        (("--num-gpus", "2"), "MODEL.DEVICE is 'cpu'; set MODEL.DEVICE cuda"),
        (("--num-gpus", "2", "MODEL.DEVICE", "cuda:1"), "MODEL.DEVICE is 'cuda:1'; set"),
        (("--num-machines", "2", "--dist-url", "tcp://a:1"), "MODEL.DEVICE is 'cpu'; set"),
    ],
)
def test_processes_that_cannot_be_are_refused_before_they_start(
    flags, message, parse, launched, capfd
):
    assert run(parse(*flags)) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert launched == []


def test_processes_that_can_be_are_started(parse, launched, monkeypatch):
    assert run(parse()) == 0  # one, on the CPU
    assert run(parse("--num-gpus", "2", "MODEL.DEVICE", "cuda")) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(parse("--num-gpus", "4")) == 0
    assert launched == [1, 2, 4]


def test_what_is_logged_is_in_tensorboard_too(parse, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = parse()
    args.opts += ["DATASETS.TEST", "()"]
    main(args)
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    (last,) = (json.loads(line) for line in lines)
    assert len(list((tmp_path / "out").glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "lr"} <= tags
    assert set(last) - {"iteration"} <= tags
    (value,) = (event for event in events.Scalars("loss_cls") if event.step == last["iteration"])
    assert value.value == pytest.approx(last["loss_cls"], rel=1e-5)


def test_results_by_name(tmp_path):
    several = {"a": {"bbox": {"AP": 1.5, "APs": float("nan")}}, "b": {"voc": {"AP": 2.0}}}
    write_results(str(tmp_path / "new" / "results.json"), several, seconds=1.0)
    stored = json.loads((tmp_path / "new" / "results.json").read_text())
    assert stored["metrics"] == {"a/bbox/AP": 1.5, "a/bbox/APs": None, "b/voc/AP": 2.0}


def test_every_step_and_process_draws_numbers_of_its_own(parse, monkeypatch):
    monkeypatch.setattr(
        DefaultTrainer, "run_step", lambda self: drawn.append(float(torch.rand(())))
    )

    def draws(rank):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        drawn.clear()
        for trainer.iter in range(3):
            trainer.run_step()
        return list(drawn)

    drawn = []
    trainer = Trainer(setup_cfg(parse()))
    first, other = draws(0), draws(1)
    assert len({*first, *other}) == 6
    trainer = Trainer(setup_cfg(parse()))  # of the same seed
    assert draws(0) == first
