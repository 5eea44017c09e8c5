"""Every shipped config builds, and has the size that the paper or arithmetic says."""

from pathlib import Path

import pytest
import torch
import yaml

from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.modeling import build_model

PROJECT = Path(__file__).parents[3] / "projects" / "ddod"
CONFIGS = PROJECT / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)
ATSS, DDOD = 32_242_202, 32_325_182
WHOLE_MODELS = {
    "atss_iou_R_50_FPN_1x": ATSS,
    "atss_centerness_R_50_FPN_1x": ATSS,
    "fcos_star_R_50_FPN_1x": ATSS,
    "retinanet_R_50_FPN_1x": 37_915_572,
    "ddod_atss_R_50_FPN_1x": DDOD,
    "ddod_fcos_R_50_FPN_1x": DDOD,
    "ddod_retinanet_R_50_FPN_1x": 37_998_040,
    "ablations/table4_assignment": ATSS,
    "ablations/table4_features": DDOD,
    "ablations/table4_supervision": ATSS,
    "ablations/table6_position4": DDOD,
    "ddod_atss_R_50_FPN_2x": DDOD,
    "ddod_atss_R_101_FPN_2x": 51_265_086,
    "ddod_atss_R_101_DCN_FPN_2x": 51_265_086 + 1_286_172,
    # The convolutions of the backbone, its deformable layers, pyramid and head.
    "ddod_atss_X_101_32x4d_DCN_FPN_2x": 41_990_848 + 2_405_844 + 3_868_672 + 5_001_598,
    "ddod_atss_R2_101_DCN_FPN_2x": 43_057_732 + 1_568_484 + 3_868_672 + 5_001_598,
}
# Res2Net as above; pyramid of 384 channels with P6 and P7, its second path, and the head.
WHOLE_MODELS["ddodx_atss_R2_101_DCN_FPN_2x"] = (
    43_057_732
    + 1_568_484
    + (512 + 1024 + 2048) * 384
    + 5 * 384 * 384 * 9
    + 8 * 384
    + 4 * (384 * 384 * 9 + 384)
    + 11_041_278
)
# Convolutions and norms of R-50, offsets of res4 and res5, pyramid with GN, P6 and P7, context.
FACE = 23_454_912 + 53_120 + 6 * 41_490 + 3 * 82_962
FACE += 3_342_336 + 8 * 512 + 5_308_928 + 552_960 + 768
WHOLE_MODELS |= {
    "wider_face/atss_face_R_50_FPN": FACE + 4_819_504 - 82_980,
    "wider_face/ddod_face_R_50_FPN": FACE + 4_819_504,
}
PARTS = {
    # name: (head, trainable parameters of the model)
    "atss_iou_R_50_FPN_1x": (4_918_618, 32_019_802),
    "ddod_atss_R_50_FPN_1x": (5_001_598, 32_102_782),
    "retinanet_R_50_FPN_1x": (6_463_220, None),
    "ddod_retinanet_R_50_FPN_1x": (6_545_688, None),
}
THRESHOLDS = (0.4, 0.5, 0.6)
ALPHAS = (0.5, 0.6, 0.7, 0.8)


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


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
    assert make_cfg(name).OUTPUT_DIR == f"output/ddod/{name}"
    model = build_on_meta(name)
    assert count(model) == WHOLE_MODELS.get(name.removesuffix("_tta"), count(model)) > 10**6
    if name in PARTS:
        head, trainable = PARTS[name]
        assert count(model.head) == head
        if trainable:
            assert count(model, trainable=True) == trainable


def test_every_size_is_that_of_a_config():
    assert set(WHOLE_MODELS) <= set(NAMES)


def test_ddod_x_is_a_reading_with_switches(make_cfg):
    """Beside width, pyramid, Soft-NMS and augmentation it is the row above it in Table 8."""
    cfg, plain = make_cfg("ddodx_atss_R2_101_DCN_FPN_2x"), make_cfg("ddod_atss_R2_101_DCN_FPN_2x")
    node = cfg.MODEL.DDOD
    assert (node.FPN.TYPE, node.CONV_DIM, cfg.MODEL.FPN.OUT_CHANNELS) == ("pafpn", 384, 384)
    assert (node.TEST.NMS_TYPE, node.TEST.NMS_THRESH, node.TEST.SOFT_NMS_METHOD) == (
        "soft",
        0.6,
        "linear",
    )
    assert cfg.SOLVER == plain.SOLVER
    assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    assert (plain.MODEL.DDOD.FPN.TYPE, plain.MODEL.DDOD.TEST.NMS_TYPE) == ("fpn", "hard")
    assert not plain.INPUT.CROP.ENABLED and plain.CLSLOC.INPUT.CUTOUT.PROB == 0


def test_ddod_x_augments_its_training_images(make_cfg):
    import numpy as np

    from clsloc.data.augmentations import build_train_augmentations
    from detectron2.data import transforms as T

    np.random.seed(0)
    augmentations = build_train_augmentations(make_cfg("ddodx_atss_R2_101_DCN_FPN_2x"))
    sizes, cropped, holes = [], 0, 0
    for _ in range(60):
        image = T.AugInput(np.full((40, 60, 3), 255, np.uint8))
        done = T.AugmentationList(augmentations)(image)
        sizes.append(image.image.shape[:2])
        cropped += any(isinstance(t, T.CropTransform) for t in done.transforms)
        holes += bool((image.image == 0).any())
    short, long = (np.array([f(size) for size in sizes]) for f in (min, max))
    assert short.min() >= 500 and short.max() <= 1400 and long.max() <= 2100
    assert long.min() < 900 and long.max() > 1900
    assert 15 < cropped < 45 and 15 < holes < 45


def test_sizes_of_ms_test(make_cfg):
    cfg = make_cfg("ddodx_atss_R2_101_DCN_FPN_2x_tta")
    aug = cfg.TEST.AUG
    assert (aug.ENABLED, aug.FLIP, aug.MAX_SIZE, len(aug.MIN_SIZES)) == (True, True, 4000, 13)
    assert (min(aug.MIN_SIZES), max(aug.MIN_SIZES)) == (400, 1800)


def test_heads_of_other_widths(build_on_meta):
    one = {"MODEL.DDOD.NUM_CLASSES": 1}
    assert count(build_on_meta(overrides=one).head) == 4_819_503
    wide = {"MODEL.DDOD.CONV_DIM": 384, "MODEL.FPN.OUT_CHANNELS": 384}
    assert count(build_on_meta(overrides=wide).head) == 11_041_278


@pytest.mark.parametrize("reg", THRESHOLDS)
@pytest.mark.parametrize("cls", THRESHOLDS)
def test_rows_of_table_1_are_overrides(cls, reg, make_cfg):
    from ddod.meta_arch import build_assigner

    overrides = {"MODEL.DDOD.ASSIGN.IOU_CLS": [0.4, cls], "MODEL.DDOD.ASSIGN.IOU_REG": [0.4, reg]}
    assigner = build_assigner(make_cfg("retinanet_R_50_FPN_1x", overrides), 9)
    assert assigner.thresholds == ((0.4, cls), (0.4, reg))
    assert assigner.low_quality


@pytest.mark.parametrize("reg", ALPHAS)
@pytest.mark.parametrize("cls", ALPHAS)
def test_rows_of_table_5_are_overrides(cls, reg, make_cfg):
    from ddod.meta_arch import build_assigner

    overrides = {"MODEL.DDOD.ASSIGN.ALPHA_CLS": cls, "MODEL.DDOD.ASSIGN.ALPHA_REG": reg}
    assigner = build_assigner(make_cfg("ablations/table4_assignment", overrides), 1)
    assert (assigner.alphas, assigner.topk) == ((cls, reg), 9)


def test_retinanet_has_81_candidates_of_a_level(make_cfg):
    from ddod.meta_arch import build_assigner

    cfg = make_cfg("ddod_retinanet_R_50_FPN_1x")
    assert build_assigner(cfg, 9).topk == 81
    cfg = make_cfg("ddod_retinanet_R_50_FPN_1x", {"MODEL.DDOD.ASSIGN.TOPK_PER_ANCHOR": False})
    assert build_assigner(cfg, 9).topk == 9


@pytest.mark.parametrize("position", range(5))
def test_one_deformable_layer_for_each_tower(position, build_on_meta):
    from clsloc.layers import DeformConv2d

    head = build_on_meta(overrides={"MODEL.DDOD.DCN.POSITION": position}).head
    for tower in (head.cls_subnet, head.bbox_subnet):
        convs = [m for m in tower if isinstance(m, torch.nn.Conv2d)]
        deformable = [isinstance(m, DeformConv2d) for m in convs]
        assert deformable == [i == position for i in range(1, 5)]


def test_ablations_are_atss_and_what_their_row_says(make_cfg):
    full, base = make_cfg("ddod_atss_R_50_FPN_1x"), make_cfg("atss_iou_R_50_FPN_1x")
    changed = {
        "table4_assignment": ["ASSIGN"],
        "table4_features": ["DCN"],
        "table4_supervision": ["REWEIGHT"],
    }
    for name, nodes in changed.items():
        expected = base.MODEL.DDOD.clone()
        expected.defrost()
        for node in nodes:
            expected[node] = full.MODEL.DDOD[node].clone()
        assert make_cfg(f"ablations/{name}").MODEL.DDOD == expected, name
    same = [("table7_interp_moving", "table4_supervision"), ("table6_position1", "table4_features")]
    same += [("table7_linear", "table2_1to2")]
    for one, other in same:
        a, b = (make_cfg(f"ablations/{name}").MODEL.DDOD for name in (one, other))
        assert a == b


def test_settings_of_the_authors(make_cfg):
    for name in ("ddod_atss_R_50_FPN_1x", "retinanet_R_50_FPN_1x", "fcos_star_R_50_FPN_1x"):
        cfg = make_cfg(name)
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.01)
        assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((60000, 80000), 90000)
        assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0.0001
        assert cfg.INPUT.MIN_SIZE_TRAIN == (800,)
        assert cfg.MODEL.DDOD.TEST.NMS_THRESH == (0.5 if "retinanet" in name else 0.6)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"ASSIGN.MODE": "simota"}, "ASSIGN.MODE must be one of cost, atss, iou, got 'simota'"),
        ({"ASSIGN.ALPHA_CLS": 2.0}, "exponent between 0 and 1"),
        ({"ASSIGN.TOPK_METRIC": "size"}, "distance or cost"),
        ({"CODER": "xywh"}, "CODER must be one of delta, ltrb"),
        ({"QUALITY": "giou"}, "QUALITY must be one of"),
        ({"DCN.POSITION": 3}, "POSITION 3 is no convolution of a tower of 2"),
        ({"DCN.IMPL": "cuda"}, "one of auto, torchvision, sampling"),
        ({"REWEIGHT.TYPE": "log"}, "REWEIGHT.TYPE must be one of"),
        ({"REWEIGHT.RANGE": [1.0]}, "RANGE has two numbers"),
        ({"REWEIGHT.RANGE": [1.0, "a"]}, "RANGE has two numbers"),
        ({"NUM_CLASSES": 0}, "NUM_CLASSES is at least 1, got 0"),
        ({"NUM_CONVS": -1}, "NUM_CONVS is at least 0, got -1"),
        ({"PRIOR_PROB": 1.0}, "PRIOR_PROB is a probability above 0 and below 1, got 1.0"),
        ({"BBOX_REG_WEIGHTS": [1.0]}, "BBOX_REG_WEIGHTS is four numbers above 0"),
        ({"NORM": "XX"}, "NORM 'XX' is no norm of Detectron2"),
        ({"CONV_DIM": 40}, "CONV_DIM 40 .GN: a multiple of 32"),
        ({"IN_FEATURES": ["p9"]}, "maps of the backbone, p3, p4, p5, p6, p7, got .'p9'"),
        ({"IN_FEATURES": []}, "IN_FEATURES are maps of the backbone"),
        ({"DCN.DEFORM_GROUPS": 3}, "channels do not divide into 3"),
        ({"ASSIGN.TOPK": 0}, "ASSIGN.TOPK is at least 1, got 0"),
        ({"ASSIGN.MODE": "iou", "ASSIGN.IOU_CLS": [0.5]}, "IOU_CLS are two rising thresholds"),
        ({"ASSIGN.IGNORE_IOF_THR": 1.0}, "IGNORE_IOF_THR is a share below 1"),
        ({"LOSS.FOCAL_ALPHA": 2.0}, "FOCAL_ALPHA is at most 1"),
        ({"LOSS.FOCAL_GAMMA": -1.0}, "FOCAL_GAMMA is at least 0"),
        ({"LOSS.SMOOTH_L1_BETA": -1.0}, "SMOOTH_L1_BETA is at least 0"),
        ({"TEST.SCORE_THRESH": 1.0}, "SCORE_THRESH is a probability below 1"),
        ({"TEST.TOPK_CANDIDATES": 0}, "TOPK_CANDIDATES is at least 1"),
        ({"TEST.NMS_THRESH": 2.0}, "NMS_THRESH is an IoU between 0 and 1"),
        ({"TEST.SOFT_NMS_METHOD": "cubic"}, "SOFT_NMS_METHOD must be one of linear, gaussian"),
        ({"TEST.SOFT_NMS_SIGMA": 0.0}, "SOFT_NMS_SIGMA is above 0"),
        ({"TEST.SOFT_NMS_MIN_SCORE": 1.0}, "SOFT_NMS_MIN_SCORE is a score below 1"),
        ({"TEST.SCORE_POWERS": [1.0]}, "SCORE_POWERS is two exponents"),
        ({"TEST.MIN_HEIGHT": -1.0}, "MIN_HEIGHT is at least 0"),
        ({"LOSS.BOX_TYPE": "l2"}, "BOX_TYPE must be one of"),
        ({"LOSS.NORMALIZER": "mean"}, "NORMALIZER must be one of num_pos, ema"),
        ({"TEST.TOPK_MODE": "all"}, "TOPK_MODE must be one of pair, location"),
        ({"TEST.NMS_TYPE": "none"}, "NMS_TYPE must be one of hard, soft, vote"),
        ({"TEST.SCORE_FUSION": "sum"}, "SCORE_FUSION must be one of product, sqrt, power"),
    ],
)
def test_unknown_values_are_refused(keys, message, build_tiny):
    with pytest.raises(UserError, match=message):
        build_tiny(**keys)


def test_a_second_path_of_the_pyramid_is_four_convolutions(build_on_meta):
    second = {"MODEL.DDOD.FPN.TYPE": "pafpn"}
    assert count(build_on_meta(overrides=second)) == DDOD + 4 * (256 * 256 * 9 + 256)


def test_unknown_pyramids_are_refused(build_on_meta):
    with pytest.raises(UserError, match="TYPE must be one of fpn, pafpn, ssh, got 'bifpn'"):
        build_on_meta(overrides={"MODEL.DDOD.FPN.TYPE": "bifpn"})


def test_unknown_sources_of_p6_are_refused(build_on_meta):
    with pytest.raises(UserError, match="P6_FROM must be one of p5, res5, got 'p4'"):
        build_on_meta(overrides={"MODEL.DDOD.FPN.P6_FROM": "p4"})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [256]]}, "as many strides"),
        ({"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[2.0]]}, "one square anchor"),
    ],
)
def test_points_need_anchors_of_one_shape(overrides, message, build_tiny):
    with pytest.raises(UserError, match=message):
        build_tiny(overrides, config="ddod_fcos_R_50_FPN_1x")


class Spy:
    """A config node that remembers which of its keys were read."""

    def __init__(self, node, read, prefix=""):
        self._node, self._read, self._prefix = node, read, prefix

    def __getattr__(self, key):
        value, name = self._node[key], self._prefix + key
        if isinstance(value, CfgNode):
            return Spy(value, self._read, name + ".")
        self._read.add(name)
        return value

    __getitem__ = __getattr__


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_is_read(make_cfg):
    read = set()
    for name in ("ddod_atss_R_50_FPN_1x", "retinanet_R_50_FPN_1x"):
        cfg = make_cfg(name, {"MODEL.DEVICE": "meta"})
        node = cfg.MODEL.DDOD
        cfg.MODEL["DDOD"] = Spy(node, read)
        with torch.device("meta"):
            build_model(cfg)
    assert read == set(_leaves(node))


def test_settings_of_one_kind_are_not_mixed_up(build_on_meta):
    """Each key of losses and NMS has a value unlike its neighbours."""
    keys = {
        "REWEIGHT.MOVING_AVERAGE": True,
        "REWEIGHT.SYNC": False,
        "LOSS.CLS_WEIGHT": 3.0,
        "LOSS.BOX_WEIGHT": 4.0,
        "LOSS.QUALITY_WEIGHT": 5.0,
        "LOSS.FOCAL_ALPHA": 0.3,
        "LOSS.FOCAL_GAMMA": 1.5,
        "TEST.SOFT_NMS_SIGMA": 0.4,
        "TEST.SOFT_NMS_MIN_SCORE": 0.02,
        "TEST.SCORE_THRESH": 0.03,
        "TEST.NMS_THRESH": 0.55,
    }
    model = build_on_meta(overrides={f"MODEL.DDOD.{key}": value for key, value in keys.items()})
    losses, inference = model.losses, model.inference
    assert losses.reweighter.moving_average and not losses.normalizer.sync_counts
    assert losses.weights == (3, 4, 5) and losses.focal == (0.3, 1.5)
    assert (inference.soft_nms_sigma, inference.soft_nms_min_score) == (0.4, 0.02)
    assert (inference.score_thresh, inference.nms_thresh) == (0.03, 0.55)
