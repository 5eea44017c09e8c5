"""Every shipped config builds, and has the size and the cost that the paper prints."""

from pathlib import Path

import pytest
import torch
import yaml

from clsloc.engine import setup_cfg
from clsloc.layers import ConvTower
from clsloc.model_info import model_info
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

CONFIGS = Path(__file__).parents[3] / "projects" / "decoupled_rcnn" / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)
FC_HEAD = 13_895_680
# Name: (parameters, trainable parameters, the paper's figure in millions).
SIZES = {
    "faster_R_50_FPN_1x": (41_699_936, 41_477_536, "41.53"),
    "decoupled_R_50_FPN_1x": (55_595_616, 55_373_216, "55.42"),
    "decoupled_cascade_R_50_FPN_1x": (83_395_176, 83_172_776, "83.22"),
    "faster_R_101_FPN_1x": (60_639_840, 60_417_440, "60.52"),
    "decoupled_R_101_FPN_1x": (74_535_520, 74_313_120, "74.42"),
    "decoupled_cascade_R_101_FPN_1x": (102_335_080, 102_112_680, "102.22"),
    "faster_X_101_32x4d_FPN_1x": (60_235_872, 60_024_224, "60.16"),
    "decoupled_X_101_32x4d_FPN_1x": (74_131_552, 73_919_904, "74.05"),
    "decoupled_cascade_X_101_32x4d_FPN_1x": (101_931_112, 101_719_464, "101.85"),
    "decoupled_cascade_X_101_64x4d_FPN_2x_ms_softnms": (141_143_656, 140_746_152, "140.94"),
    "cascade_rcnn_R_101_FPN_1x": (88_281_550, 88_059_150, "88.16"),
    "decoupled_cascadecls_R_101_FPN_1x": (129_968_590, 129_746_190, "129.85"),
    "decoupled_doublehead_R_50_FPN_1x": (47_287_392, 47_064_992, "47.12"),
    "decoupled_cascade_doublehead_R_50_FPN_1x": (58_470_504, 58_248_104, "58.30"),
    "decoupled_doublehead_R_101_FPN_1x": (66_227_296, 66_004_896, "66.11"),
    "decoupled_cascade_doublehead_R_101_FPN_1x": (77_410_408, 77_188_008, "77.29"),
}
VOC_SIZES = {
    "voc/faster_R_50_FPN": 41_392_436,
    "voc/decoupled_R_50_FPN": 55_288_116,
    "voc/decoupled_cascade_R_50_FPN": 83_087_676,
    "voc/faster_R_101_FPN": 60_332_340,
    "voc/decoupled_R_101_FPN": 74_228_020,
    "voc/decoupled_cascade_R_101_FPN": 102_027_580,
    "ablations/table2_decoupled_shared": 60_332_340,
    "ablations/table2_fpn_unshared": 74_228_020,
    "ablations/table4_stages2": 88_127_800,
    "ablations/table4_stages4": 115_927_360,
}


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def count_frozen_affine(backbone):
    """Weights and biases of the norms that are frozen here and trained in the authors' code."""
    children = backbone.bottom_up.named_children()
    stages = [stage for name, stage in children if name in ("res3", "res4", "res5")]
    norms = [m for stage in stages for m in stage.modules() if isinstance(m, FrozenBatchNorm2d)]
    return sum(m.weight.numel() + m.bias.numel() for m in norms)


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: {twice} stands twice"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_and_writes_to_a_folder_of_its_name(name, build_on_meta, make_cfg):
    with open(CONFIGS / f"{name}.yaml", encoding="utf-8") as file:
        yaml.load(file, StrictLoader)
    assert make_cfg(name).OUTPUT_DIR == f"output/decoupled_rcnn/{name}"
    model = build_on_meta(name)
    if name in SIZES:
        total, trainable, printed = SIZES[name]
        assert (count(model), count(model, trainable=True)) == (total, trainable)
        published = trainable + count_frozen_affine(model.backbone)
        assert f"{published / 1e6:.2f}" == printed
    else:
        assert count(model) == VOC_SIZES.get(name, count(model)) > 10**6


def test_size_of_the_heads(build_on_meta):
    heads = build_on_meta("decoupled_cascade_R_50_FPN_1x").roi_heads
    assert [count(head) for head in (*heads.cls_heads, *heads.reg_heads)] == [FC_HEAD] * 4
    assert [count(predictor) for predictor in heads.cls_predictors] == [83_025]
    assert [count(predictor) for predictor in heads.reg_predictors] == [328_000, 4_100, 4_100]
    heads = build_on_meta("voc/decoupled_cascade_R_50_FPN").roi_heads
    assert [count(predictor) for predictor in heads.cls_predictors] == [21_525]
    assert [count(predictor) for predictor in heads.reg_predictors] == [82_000, 4_100, 4_100]


@pytest.mark.parametrize("stages", [2, 4])
def test_size_with_other_numbers_of_stages(stages, build_on_meta):
    config, keys = "voc/decoupled_cascade_R_50_FPN", {"NUM_REG_STAGES": stages}
    if stages == 4:
        four = setup_cfg(config_file=str(CONFIGS / "ablations/table4_stages4.yaml"))
        for key in ("REG_IOUS", "CLS_AGNOSTIC", "BBOX_REG_WEIGHTS", "STAGE_LOSS_WEIGHTS"):
            keys[key] = four.MODEL.DECOUPLED[key]
    model = build_on_meta(config, {f"MODEL.DECOUPLED.{k}": v for k, v in keys.items()})
    assert count(model) == {2: 69_187_896, 4: 96_987_456}[stages]


def test_increments(build_on_meta):
    sizes = [SIZES[f"{kind}_R_50_FPN_1x"][0] for kind in ("faster", "decoupled")]
    assert sizes[1] - sizes[0] == FC_HEAD
    assert SIZES["decoupled_cascade_R_50_FPN_1x"][0] - sizes[1] == 27_799_560
    (tower,) = build_on_meta("decoupled_doublehead_R_50_FPN_1x").roi_heads.reg_heads
    assert isinstance(tower, ConvTower)
    assert count(tower) == 5_587_456 == 1_118_720 + 4 * 1_117_184


def test_shared_layers_are_one_module(build_on_meta):
    heads = build_on_meta("ablations/table2_decoupled_shared").roi_heads
    assert heads.cls_heads[0] is heads.reg_heads[0]
    heads = build_on_meta("ablations/table2_fpn_unshared").roi_heads
    assert heads.cls_heads[0] is not heads.reg_heads[0]


# --- cost: GFLOPs with 1,000 RoIs, as multiply-adds ---

# What the paper counts beside multiply-adds of layers: one for each output of a ReLU, two for each
# of a batch norm, one for each input of the mean over positions. In thousands for a RoI.
FC_RELU = 2 * 1.024
TOWER_NORM, TOWER_RELU, TOWER_MEAN = 828, 364, 50


@pytest.fixture
def head_gflops(make_cfg):
    """Of the box branch, for 1,000 RoIs, measured on a few."""

    def measure(config):
        keys = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.BACKBONE.NAME": "SmallPyramid"}
        keys |= {"MODEL.FPN.OUT_CHANNELS": 256, "CLSLOC.LAZY_LOCALISATION": False}
        parts = model_info(build_model(make_cfg(config, keys)), (64, 96), num_rois=2)["parts"]
        return parts["roi_heads"]["flops"] * 500 / 1e9

    return measure


def test_cost_of_table_8(head_gflops):
    names = [f"{kind}_R_50_FPN_1x" for kind in ("faster", "decoupled", "decoupled_cascade")]
    faster, one, three = map(head_gflops, names)
    assert one - faster == pytest.approx(13.893632, abs=1e-6)
    assert f"{one - faster + FC_RELU / 1e3:.2f}" == "13.90"
    assert three - one == pytest.approx(2 * (13.893632 + 0.004096), abs=1e-6)
    assert f"{three - one + 2 * FC_RELU / 1e3:.2f}" == "27.80"


def test_cost_of_table_10(head_gflops):
    faster, cascade, decoupled = (
        head_gflops(f"{kind}_R_101_FPN_1x")
        for kind in ("faster", "cascade_rcnn", "decoupled_cascadecls")
    )
    assert f"{cascade - faster + 2 * FC_RELU / 1e3:.2f}" == "27.64"
    assert f"{decoupled - cascade + 3 * FC_RELU / 1e3:.2f}" == "41.69"


def test_cost_of_table_11(head_gflops):
    faster = head_gflops("faster_R_50_FPN_1x")
    tower = head_gflops("decoupled_doublehead_R_50_FPN_1x") - faster
    assert tower == pytest.approx(272.957440, abs=1e-5)
    beside = (TOWER_NORM + TOWER_RELU + TOWER_MEAN) / 1e3
    assert f"{tower + beside:.2f}" == "274.20"


# --- what the keys say ---


def test_ours_plus_is_ours_with_soft_nms(make_cfg, build_on_meta):
    for depth in ("R_101", "X_101_32x4d"):
        name, keys = f"decoupled_cascade_{depth}_FPN_2x_testdev", {"MODEL.DECOUPLED.SOFT_NMS": True}
        assert build_on_meta(name).roi_heads.soft_nms is None
        assert build_on_meta(name, keys).roi_heads.soft_nms == {
            "method": "linear",
            "iou_thresh": 0.5,
            "sigma": 0.5,
            "min_score": 0.001,
        }
        assert make_cfg(name).DATASETS.TEST == ("coco_2017_test-dev",)


DEFAULTS = {
    "NMS_THRESH_CLS": 0.7,
    "NMS_THRESH_REG": 0.85,
    "POST_NMS_TOPK_REG_TRAIN": 1000,
    "REG_SAMPLER": "positive",
    "REG_BATCH_SIZE_PER_IMAGE": 512,
    "REG_POSITIVE_FRACTION": 0.25,
    "REG_APPEND_GT": False,
    "SHARED_FC": False,
    "NUM_REG_STAGES": 3,
    "REG_IOUS": (0.5, 0.5, 0.5),
    "BBOX_REG_WEIGHTS": tuple((10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k) for k in (1, 2, 3)),
    "CLS_AGNOSTIC": (False, True, True),
    "LOSS_LAMBDA": 0.5,
    "STAGE_LOSS_WEIGHTS": (1.0, 0.5, 0.25),
    "REG_LOSS_NORM": "batch",
    "REG_HEAD": "FastRCNNConvFCHead",
    "REG_ROI_SCALE": 1.0,
    "CASCADE_CLS": False,
    "CLS_IOUS": (0.5, 0.6, 0.7),
    "TEST_REG_STAGE": -1,
    "TEST_CLS_STAGES": (),
    "SOFT_NMS": False,
    "SOFT_NMS_MIN_SCORE": 0.001,
}


def test_defaults_are_those_of_the_paper():
    node = setup_cfg().MODEL.DECOUPLED
    assert {key: node[key] for key in DEFAULTS} == DEFAULTS
    assert set(node) - set(DEFAULTS) == {"SOFT_NMS_METHOD", "SOFT_NMS_SIGMA"}


# Row: what it changes in the detector on VOC with R-101 and one stage, or with three.
ONE, THREE = "voc/decoupled_R_101_FPN", "voc/decoupled_cascade_R_101_FPN"
STOCK_SAMPLES = {"REG_SAMPLER": "random", "REG_APPEND_GT": True}
ROWS = {
    "table1_reg70_cls70": (ONE, {**STOCK_SAMPLES, "NMS_THRESH_REG": 0.7}),
    "table1_reg80_cls70": (ONE, {**STOCK_SAMPLES, "NMS_THRESH_REG": 0.8}),
    "table1_reg90_cls70": (ONE, {**STOCK_SAMPLES, "NMS_THRESH_REG": 0.9}),
    "table1_reg70_cls80": (
        ONE,
        {**STOCK_SAMPLES, "NMS_THRESH_REG": 0.7, "NMS_THRESH_CLS": 0.8},
    ),
    "table1_reg70_cls90": (
        ONE,
        {**STOCK_SAMPLES, "NMS_THRESH_REG": 0.7, "NMS_THRESH_CLS": 0.9},
    ),
    "table2_fpn_unshared": (ONE, {"REG_SAMPLER": "shared"}),
    "table2_decoupled_shared": (ONE, {"SHARED_FC": True, "NMS_THRESH_REG": 0.7}),
    **{f"table3_reg{x}": (ONE, {"NMS_THRESH_REG": x / 100}) for x in (70, 75, 80, 90, 95)},
    "table4_stages2": (THREE, {"NUM_REG_STAGES": 2, "LOSS_LAMBDA": 1.0}),
    "table4_stages3": (THREE, {"LOSS_LAMBDA": 1.0}),
    "table4_stages4": (
        THREE,
        {
            "NUM_REG_STAGES": 4,
            "LOSS_LAMBDA": 1.0,
            "REG_IOUS": (0.5, 0.5, 0.5, 0.5),
            "CLS_AGNOSTIC": (False, True, True, True),
            "BBOX_REG_WEIGHTS": [[10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k] for k in (1, 2, 3, 4)],
            "STAGE_LOSS_WEIGHTS": (1.0, 0.5, 0.25, 0.125),
        },
    ),
    "table5_reg70": (THREE, {"LOSS_LAMBDA": 1.0, "NMS_THRESH_REG": 0.7}),
    "table6_lambda75": (THREE, {"LOSS_LAMBDA": 0.75}),
    "table6_lambda25": (THREE, {"LOSS_LAMBDA": 0.25}),
}


def test_rows_of_the_ablations_change_what_their_table_says(make_cfg):
    assert {f"ablations/{name}" for name in ROWS} == {n for n in NAMES if n.startswith("ablations")}
    lambdas = [make_cfg(config).MODEL.DECOUPLED.LOSS_LAMBDA for config in (ONE, THREE)]
    assert lambdas == [1.0, 0.5]
    for name, (base, keys) in ROWS.items():
        found, expected = make_cfg(f"ablations/{name}").clone(), make_cfg(base).clone()
        for cfg in (found, expected):
            cfg.defrost()
            cfg.OUTPUT_DIR = ""
        expected.MODEL.DECOUPLED.update(keys)
        for cfg in (found, expected):
            node = cfg.MODEL.DECOUPLED
            node.BBOX_REG_WEIGHTS = [list(weights) for weights in node.BBOX_REG_WEIGHTS]
        assert found == expected, name


def test_the_schedules_are_those_of_the_paper(make_cfg):
    coco, voc = 117_266, 16_551  # images with objects
    for name, images, epochs in [
        ("faster_R_50_FPN_1x", coco, (8, 11, 12)),
        ("decoupled_cascade_X_101_32x4d_FPN_2x_testdev", coco, (16, 22, 24)),
        ("voc/decoupled_cascade_R_101_FPN", voc, (9, 12)),
    ]:
        cfg = make_cfg(name)
        assert cfg.SOLVER.IMS_PER_BATCH == 8
        marks = (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)
        assert marks == pytest.approx([epoch * images / 8 for epoch in epochs], abs=1)
        assert cfg.SOLVER.BASE_LR == (0.005 if images == voc else 0.01)


def test_settings_of_the_paper(make_cfg):
    for name in ("faster_R_50_FPN_1x", "decoupled_cascade_R_50_FPN_1x", "voc/decoupled_R_50_FPN"):
        cfg = make_cfg(name)
        assert cfg.MODEL.RPN.SMOOTH_L1_BETA == cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA == 0
        assert cfg.INPUT.MIN_SIZE_TRAIN == (800,)
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 1000
        assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    several = make_cfg("decoupled_cascade_X_101_64x4d_FPN_2x_ms_softnms")
    assert several.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert several.MODEL.DECOUPLED.SOFT_NMS
    assert several.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.001
    eq8 = make_cfg("decoupled_cascade_R_50_FPN_1x_eq8").MODEL.DECOUPLED
    assert eq8.STAGE_LOSS_WEIGHTS == (1.0, 1.0, 1.0)
    lambdas = [
        make_cfg(name).MODEL.DECOUPLED.LOSS_LAMBDA
        for name in ("decoupled_R_50_FPN_1x", "voc/decoupled_R_50_FPN")
    ]
    assert lambdas == [0.5, 1.0]


def test_nodes_that_are_there_already_stay():
    from clsloc.engine.projects import add_project_configs

    cfg = setup_cfg(freeze=False)
    cfg.MODEL.DECOUPLED.NUM_REG_STAGES = 2
    add_project_configs(cfg)
    assert cfg.MODEL.DECOUPLED.NUM_REG_STAGES == 2


class Spy:
    """A config node that remembers which of its keys were read."""

    def __init__(self, node, read):
        self._node, self._read = node, read

    def __getattr__(self, key):
        self._read.add(key)
        return self._node[key]

    __getitem__ = __getattr__


def test_every_key_is_read(make_cfg):
    cfg = make_cfg("decoupled_cascadecls_R_101_FPN_1x", {"MODEL.DEVICE": "meta"})
    node, read = cfg.MODEL.DECOUPLED, set()
    assert isinstance(node, CfgNode)
    cfg.MODEL["DECOUPLED"] = Spy(node, read)
    with torch.device("meta"):
        build_model(cfg)
    assert read == set(node)
