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


CLS = {"CONTEXT.CLS": True}
V5, STRIDE_8 = {"SPLIT_BLOCK": 5}, {"LOC_DOWN": "none"}
# Rows of the tables: what they set in `MODEL.GRCN`.
ROWS = {
    "vgg16_baseline": {},
    "vgg16_detect_f": V5,
    "vgg16_detect_rf": V5 | {"HEAD": "separate"},
    "vgg16_detect_s": {"HEAD": "double"},
    "vgg16_context_cls": CLS,
    "vgg16_context_loc": {"CONTEXT.LOC": True},
    "vgg16_nopool_cls": V5 | {"CLS_DOWN": "none"},
    "vgg16_nopool_loc": V5 | STRIDE_8,
    "vgg16_conv_loc": V5 | {"LOC_DOWN": "conv"},
    "vgg16_pool_s1_loc": V5 | {"LOC_DOWN": "pool_s1"},
    "vgg16_grcn": V5 | STRIDE_8 | CLS,
    "R_50_baseline": {},
    "R_50_grcn": {"RES4_SPLIT": 2} | STRIDE_8 | CLS,
    "R_101_baseline": {},
    "R_101_grcn": {"RES4_SPLIT": 6} | STRIDE_8 | CLS,
    "R_50_det": {"RES_DET": True},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_their_switches_and_nothing_else(name, make_cfg):
    network = "vgg16" if "vgg16" in name else "_".join(name.split("_")[:2])
    for folder in ("coco", "voc"):
        if f"{folder}/{name}" not in NAMES:
            continue
        keys = {f"MODEL.GRCN.{key}": value for key, value in ROWS[name].items()}
        expected = make_cfg(f"{folder}/{network}_baseline", keys)
        found = make_cfg(f"{folder}/{name}")
        for cfg in (expected, found):
            cfg.defrost()
            cfg.OUTPUT_DIR = ""
        assert found == expected


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("coco/vgg16_baseline", {"MODEL.GRCN.SPLIT_BLOCK": 1}),
        ("coco/vgg16_grcn", {"MODEL.GRCN.CONTEXT.VALUE_PROJ": True}),
        ("coco/R_50_det", {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14}),
        ("coco/R_50_det", {"MODEL.GRCN.RES_DET_HEAD": "conv2"}),
        ("coco/R_50_det", {"MODEL.GRCN.RES_DET_HEAD": "res5"}),
        (
            "coco/R_50_grcn",
            {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14, "MODEL.GRCN.RES5_STRIDE": 2},
        ),
    ],
)
def test_rows_of_the_text_build_from_overrides(name, overrides, build_on_meta):
    assert count(build_on_meta(name, overrides)) > 10**7


@pytest.mark.parametrize("name", ["vgg16_grcn", "R_101_baseline", "R_50_det"])
def test_settings_of_the_paper(name, make_cfg):
    for folder, steps, end in (("coco", 240_000, 320_000), ("voc", 150_000, 180_000)):
        cfg = make_cfg(f"{folder}/{name}")
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (1, 0.001)
        assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((steps,), end)
        assert cfg.SOLVER.WARMUP_ITERS == 0 and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED
        assert cfg.SOLVER.WEIGHT_DECAY == (0.0005 if "vgg" in name else 0.0001)
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST) == ((600,), 1000)
        assert cfg.MODEL.RPN.SMOOTH_L1_BETA == pytest.approx(1 / 9, abs=1e-4)
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 300
        assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 128
        assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.3
        assert cfg.DATASETS.TEST == (("coco_2014_val",) if folder == "coco" else ("voc_2007_test",))
        assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]) == (5 if folder == "coco" else 3)
