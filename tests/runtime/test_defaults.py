"""What drives training and prediction by a config, and launch, on either Detectron2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.modeling import META_ARCH_REGISTRY


@META_ARCH_REGISTRY.register()
class _MeanColor(nn.Module):
    """Learns nothing from images; at inference tells what it was given."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, batched_inputs):
        if self.training:
            return {"loss": self.w.sum()}
        image = batched_inputs[0]["image"]
        return [{"input": batched_inputs[0], "mean": image.mean(dim=(1, 2)), "w": self.w.item()}]


def _cfg(**solver) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "_MeanColor"
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = "out"
    cfg.SEED = 1
    options = {"MAX_ITER": 4, "STEPS": (3,), "WARMUP_ITERS": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0}
    for name, value in (options | solver).items():
        cfg.SOLVER[name] = type(cfg.SOLVER[name])(value)
    return cfg


class _DefaultTrainer(DefaultTrainer):
    evaluations = 0

    @classmethod
    def build_train_loader(cls, cfg):
        return iter([None] * cfg.SOLVER.MAX_ITER)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.evaluations += 1
        return {"bbox": {"AP": 12.0}}


def test_default_trainer_trains_saves_and_resumes():
    cfg = _cfg(MAX_ITER=4, CHECKPOINT_PERIOD=2, BASE_LR=0.1)
    trainer = _DefaultTrainer(cfg)
    assert isinstance(trainer, TrainerBase)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    trainer.train()
    # Three steps of 0.1 and, after the step of the schedule, one of 0.01.
    assert trainer.model.w.item() == pytest.approx(1 - 0.31)
    assert {"metrics.json", "model_0000001.pth", "model_final.pth"} <= set(os.listdir("out"))
    last = json.loads(Path("out/metrics.json").read_text().splitlines()[-1])
    assert last == {"bbox/AP": 12.0, "iteration": 4}
    assert _DefaultTrainer.evaluations == 1

    longer = _DefaultTrainer(_cfg(MAX_ITER=6, BASE_LR=0.1))
    longer.resume_or_load(resume=True)
    assert longer.start_iter == 4
    assert longer.scheduler.last_epoch == 4
    longer.train()
    assert longer.model.w.item() == pytest.approx(1 - 0.33)

    fresh = _DefaultTrainer(_cfg())
    fresh.resume_or_load(resume=False)
    assert fresh.start_iter == 0
    fresh.model = replacement = _MeanColor(cfg)
    assert fresh.model is replacement


def test_expected_results_are_verified():
    cfg = _cfg(MAX_ITER=1)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 12.0, 0.1]]
    assert _DefaultTrainer(cfg).train() == {"bbox": {"AP": 12.0}}
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 40.0, 0.1]]
    with pytest.raises(SystemExit):
        _DefaultTrainer(cfg).train()


def test_scaling_to_another_number_of_processes():
    cfg = _cfg(
        REFERENCE_WORLD_SIZE=8, IMS_PER_BATCH=16, BASE_LR=0.08, MAX_ITER=1000, STEPS=(600, 900)
    )
    cfg.TEST.EVAL_PERIOD = 50
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 2)
    assert scaled.is_frozen()
    assert scaled.SOLVER.IMS_PER_BATCH == 4
    assert pytest.approx(0.02) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER == 4000
    assert scaled.SOLVER.STEPS == (2400, 3600)
    assert scaled.TEST.EVAL_PERIOD == 200
    assert scaled.SOLVER.REFERENCE_WORLD_SIZE == 2
    assert cfg.SOLVER.MAX_ITER == 1000
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg


def test_predictor_resizes_and_orders_channels():
    cfg = _cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 100
    cfg.DATASETS.TEST = ("predictor_test",)
    Checkpointer(_MeanColor(cfg), ".").save("weights")
    weights = torch.load("weights.pth")
    weights["model"]["w"] += 1
    torch.save(weights, "weights.pth")
    cfg.MODEL.WEIGHTS = "weights.pth"
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, :, 0] = 200  # blue
    for order, mean in (("BGR", [200, 0, 0]), ("RGB", [0, 0, 200])):
        cfg.INPUT.FORMAT = order
        predictor = DefaultPredictor(cfg)
        output = predictor(image)
        assert output["input"]["image"].shape == (3, 20, 60)
        assert (output["input"]["height"], output["input"]["width"]) == (10, 30)
        assert output["mean"].tolist() == mean
        assert output["w"] == 2.0
    assert predictor.metadata is MetadataCatalog.get("predictor_test")


def test_command_line():
    parse = default_argument_parser().parse_args
    port = 2**15 + 2**14 + hash(os.getuid()) % 2**14
    assert vars(parse([])) == {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": f"tcp://127.0.0.1:{port}",
        "opts": [],
    }
    args = parse(["--num-gpus", "2", "--resume", "--config-file", "a.yaml", "SEED", "-1"])
    assert (args.num_gpus, args.resume, args.config_file) == (2, True, "a.yaml")
    assert args.opts == ["SEED", "-1"]


def test_default_setup_writes_config_and_log(tmp_path):
    given, out = tmp_path / "given.yaml", tmp_path / "out"
    given.write_text("SEED: 1\n")
    cfg = _cfg()
    cfg.OUTPUT_DIR = str(out)
    args = default_argument_parser().parse_args(["--config-file", str(given)])
    default_setup(cfg, args)
    first = torch.rand(1)
    assert (out / "config.yaml").read_text() == cfg.dump()
    assert str(given) in (out / "log.txt").read_text()
    default_setup(cfg, {})
    assert torch.equal(torch.rand(1), first)


# Processes


def test_a_single_process_is_not_launched():
    calls = []
    launch(calls.append, 1, args=("here",))
    assert calls == ["here"]
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model
    with pytest.raises(AssertionError):
        launch(calls.append, 2, num_machines=2, dist_url="auto", args=("x",))


SCRIPT = '''
import json
import numpy as np
import torch
from torch import nn
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm


class Loss(nn.Module):
    """w times the batch: its gradient is the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss_a": (self.w * batch).sum(), "loss_rank": self.w.sum() * 0 + batch}


def main(folder):
    rank = comm.get_rank()
    np.random.seed(rank)
    facts = {
        "world": [comm.get_world_size(), rank, comm.get_local_size(), comm.get_local_rank()],
        "main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank),
        "gather_on_1": comm.gather(rank, dst=1),
        "local": comm.all_gather(rank, group=comm.get_local_process_group()),
        "seed": comm.shared_random_seed(),
        "mean": comm.reduce_dict({"b": torch.tensor(2.0 * rank), "a": torch.tensor(1.0)})["b"],
        "sum": comm.reduce_dict({"b": torch.tensor(2.0 * rank)}, average=False)["b"],
    }
    facts["mean"], facts["sum"] = facts["mean"].item(), facts["sum"].item()
    comm.synchronize()
    try:
        create_ddp_model(Loss())
    except ValueError:
        facts["device_ids_on_cpu"] = "refused"
    model = create_ddp_model(Loss(), device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = SimpleTrainer(model, iter([torch.tensor(1.0 + 2 * rank)]), optimizer)
    trainer.train(0, 1)
    facts["w"] = model.module.w.item()
    facts["scalars"] = {name: value for name, (value, _) in trainer.storage.latest().items()}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(".",))
'''


def test_two_processes():
    Path("script.py").write_text(SCRIPT)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = None
    for _ in range(3):  # "auto" finds a free port, which another program may take before we do
        done = subprocess.run(
            [sys.executable, "script.py"], env=environment, timeout=200, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if "address already in use" not in done.stderr.lower():
            break
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"{rank}.json").read_text()) for rank in range(2))
    assert [first["world"], second["world"]] == [[2, 0, 2, 0], [2, 1, 2, 1]]
    assert [first["main"], second["main"]] == [True, False]
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert [first["gather"], second["gather"]] == [[0, 1], []]
    assert [first["gather_on_1"], second["gather_on_1"]] == [[], [0, 1]]
    assert first["local"] == second["local"] == [0, 1]
    np.random.seed(0)
    assert first["seed"] == second["seed"] == np.random.randint(2**31)
    assert [first["mean"], first["sum"]] == [1.0, 2.0]
    assert first["device_ids_on_cpu"] == second["device_ids_on_cpu"] == "refused"
    # Gradients 1 and 3 are averaged, and so are the losses on the main process.
    assert first["w"] == second["w"] == -2.0
    assert first["scalars"]["loss_rank"] == first["scalars"]["total_loss"] == 2.0
    assert "total_loss" not in second["scalars"]
