"""Every shipped config builds, and has the size that arithmetic says."""

from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[3] / "projects" / "grcn"
CONFIGS = PROJECT / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)
WHOLE_MODELS = {
    "coco/vgg16_baseline": 138_301_724,
    "coco/vgg16_detect_f": 145_381_148,
    "coco/vgg16_nopool_loc": 145_381_148,
    "coco/vgg16_nopool_cls": 145_381_148,
    "coco/vgg16_pool_s1_loc": 145_381_148,
    "coco/vgg16_conv_loc": 146_430_236,
    "coco/vgg16_detect_rf": 264_927_004,
    "coco/vgg16_detect_s": 259_490_076,
    "coco/vgg16_context_cls": 138_826_012,
    "coco/vgg16_context_loc": 138_826_012,
    "coco/vgg16_grcn": 145_905_436,
    "coco/R_50_baseline": 29_034_140,
    "coco/R_50_grcn": 33_359_516,
    "coco/R_101_baseline": 47_974_044,
    "coco/R_101_grcn": 56_755_868,
    "coco/R_50_det": 137_153_180,
    "voc/vgg16_baseline": 137_057_234,
    "voc/vgg16_nopool_loc": 144_136_658,
    "voc/vgg16_grcn": 144_660_946,
    "voc/R_50_baseline": 28_404_050,
    "voc/R_50_grcn": 32_729_426,
    "voc/R_101_baseline": 47_343_954,
    "voc/R_101_grcn": 56_125_778,
    "voc/R_50_det": 136_830_290,
}

SPLIT, STRIDE_8, CONTEXT = {"SPLIT_BLOCK": 5}, {"LOC_DOWN": "none"}, {"CONTEXT.CLS": True}
R_50_SPLIT, R_101_SPLIT = {"RES4_SPLIT": 2}, {"RES4_SPLIT": 6}
# What a row of Tables 1 to 5 changes in the node `MODEL.GRCN` of its baseline.
VGG_ROWS = {
    "detect_f": SPLIT,
    "detect_rf": SPLIT | {"HEAD": "separate"},
    "detect_s": {"HEAD": "double"},
    "context_cls": CONTEXT,
    "context_loc": {"CONTEXT.LOC": True},
    "nopool_cls": SPLIT | {"CLS_DOWN": "none"},
    "nopool_loc": SPLIT | STRIDE_8,
    "conv_loc": SPLIT | {"LOC_DOWN": "conv"},
    "pool_s1_loc": SPLIT | {"LOC_DOWN": "pool_s1"},
    "grcn": SPLIT | STRIDE_8 | CONTEXT,
}
ROWS = {f"coco/vgg16_{row}": ("coco/vgg16_baseline", keys) for row, keys in VGG_ROWS.items()} | {
    "voc/vgg16_nopool_loc": ("voc/vgg16_baseline", SPLIT | STRIDE_8),
    "voc/vgg16_grcn": ("voc/vgg16_baseline", SPLIT | STRIDE_8 | CONTEXT),
    "coco/R_50_split": ("coco/R_50_baseline", R_50_SPLIT),
    "coco/R_50_nostride_loc": ("coco/R_50_baseline", R_50_SPLIT | STRIDE_8),
}
for data in ("coco", "voc"):
    ROWS |= {
        f"{data}/R_50_grcn": (f"{data}/R_50_baseline", R_50_SPLIT | STRIDE_8 | CONTEXT),
        f"{data}/R_101_grcn": (f"{data}/R_101_baseline", R_101_SPLIT | STRIDE_8 | CONTEXT),
        f"{data}/R_50_det": (f"{data}/R_50_baseline", {"RES_DET": True}),
    }
for data in ("digits", "small_data"):
    ROWS |= {
        f"{data}/split_C4": (f"{data}/baseline_C4", {"RES4_SPLIT": 1}),
        f"{data}/stride8_C4": (f"{data}/baseline_C4", {"RES4_SPLIT": 1} | STRIDE_8),
        f"{data}/grcn_C4": (f"{data}/baseline_C4", {"RES4_SPLIT": 1} | STRIDE_8 | CONTEXT),
        f"{data}/det_C4": (f"{data}/baseline_C4", {"RES_DET": True}),
    }


def flatten(node, prefix=""):
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for key in node for k, v in flatten(node[key], f"{prefix}{key}.").items()}


def count(module):
    return sum(p.numel() for p in module.parameters())


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: {twice} stands twice"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_with_its_size_and_writes_to_a_folder_of_its_name(
    name, build_on_meta, make_cfg
):
    with open(CONFIGS / f"{name}.yaml", encoding="utf-8") as file:
        yaml.load(file, StrictLoader)
    assert make_cfg(name).OUTPUT_DIR == f"output/grcn/{name}"
    size = count(build_on_meta(name))
    assert size == WHOLE_MODELS.get(name, size) > 10**5


def test_every_size_is_that_of_a_config():
    assert set(WHOLE_MODELS) <= set(NAMES)


@pytest.mark.parametrize(
    "name, overrides, size",
    [
        ("voc/vgg16_baseline", {"MODEL.GRCN.CONTEXT.CLS": True}, 137_581_522),
        ("voc/vgg16_baseline", {"MODEL.GRCN.SPLIT_BLOCK": 5}, 144_136_658),
        ("coco/R_101_baseline", {"MODEL.GRCN.RES_DET": True}, 156_093_084),
        ("voc/R_101_baseline", {"MODEL.GRCN.RES_DET": True}, 155_770_194),
    ],
)
def test_size_of_what_overrides_reach(name, overrides, size, build_on_meta):
    assert count(build_on_meta(name, overrides)) == size


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_its_baseline_by_its_switches_alone(name, make_cfg):
    baseline, switches = ROWS[name]
    row, base = flatten(make_cfg(name)), flatten(make_cfg(baseline))
    changed = {key: value for key, value in row.items() if value != base[key]}
    del changed["OUTPUT_DIR"]
    assert changed == {f"MODEL.GRCN.{key}": value for key, value in switches.items()}


@pytest.mark.parametrize(
    "name, data, steps, last, anchors, detections",
    [
        ("coco/vgg16_baseline", "coco_2014_train", (240_000,), 320_000, [5, 3], 100),
        ("coco/R_50_baseline", "coco_2014_train", (240_000,), 320_000, [5, 3], 100),
        ("coco/R_101_baseline", "coco_2014_train", (240_000,), 320_000, [5, 3], 100),
        ("voc/vgg16_baseline", "voc_2007_trainval", (150_000,), 180_000, [3, 3], 300),
        ("voc/R_50_baseline", "voc_2007_trainval", (150_000,), 180_000, [3, 3], 300),
        ("voc/R_101_baseline", "voc_2007_trainval", (150_000,), 180_000, [3, 3], 300),
    ],
)
def test_settings_are_those_of_the_paper(name, data, steps, last, anchors, detections, make_cfg):
    cfg = make_cfg(name)
    solver, model = cfg.SOLVER, cfg.MODEL
    assert cfg.DATASETS.TRAIN[0] == data
    assert (solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS) == (steps, last, 0)
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (1, 0.001, 0.9)
    assert solver.WEIGHT_DECAY == (0.0005 if "vgg" in name else 0.0001)
    generator = model.ANCHOR_GENERATOR
    assert [len(generator.SIZES[0]), len(generator.ASPECT_RATIOS[0])] == anchors
    assert (model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN) == (12_000, 2_000)
    assert (model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST) == (6_000, 300)
    assert (model.RPN.NMS_THRESH, model.RPN.BOUNDARY_THRESH) == (0.7, 0)
    assert model.RPN.SMOOTH_L1_BETA == pytest.approx(1 / 9, abs=1e-4)
    assert model.ROI_BOX_HEAD.SMOOTH_L1_BETA == 1.0
    assert (model.ROI_HEADS.BATCH_SIZE_PER_IMAGE, model.ROI_HEADS.NMS_THRESH_TEST) == (128, 0.3)
    assert model.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    assert cfg.TEST.DETECTIONS_PER_IMAGE == detections
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((600,), 1000)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (600, 1000)
