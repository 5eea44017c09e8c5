"""Every shipped config builds, and has the size that the paper or arithmetic says."""

from pathlib import Path

import pytest
import torch
import yaml

from detectron2.config import CfgNode
from detectron2.modeling import build_model

PROJECT = Path(__file__).parents[3] / "projects" / "double_head"
CONFIGS = PROJECT / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)
TABLE_1 = {
    # name: (towers, weights of fc_cls, fc_reg, conv_cls, conv_reg)
    "single_fc": (["fc"], [1.0, 1.0, 0.0, 0.0]),
    "single_fc_weighted": (["fc"], [2.0, 2.0, 0.0, 0.0]),
    "single_conv": (["conv"], [0.0, 0.0, 1.0, 1.0]),
    "single_conv_weighted": (["conv"], [0.0, 0.0, 2.5, 2.5]),
    "double_fc": (["fc_cls", "fc_reg"], [1.0, 1.0, 0.0, 0.0]),
    "double_fc_weighted": (["fc_cls", "fc_reg"], [2.0, 2.0, 0.0, 0.0]),
    "double_conv": (["conv_cls", "conv_reg"], [0.0, 0.0, 1.0, 1.0]),
    "double_conv_weighted": (["conv_cls", "conv_reg"], [0.0, 0.0, 2.5, 2.5]),
    "double_head_reverse": (["fc", "conv"], [0.0, 1.0, 1.0, 0.0]),
    "double_head_reverse_weighted": (["fc", "conv"], [0.0, 2.0, 2.5, 0.0]),
    "double_head": (["fc", "conv"], [1.0, 0.0, 0.0, 1.0]),
    "double_head_weighted": (["fc", "conv"], [2.0, 0.0, 0.0, 2.5]),
}
WHOLE_MODELS = {
    "double_head_R_50_FPN_1x": 49_256_544,
    "double_head_R_50_FPN_2x": 49_256_544,
    "double_head_ext_R_50_FPN_1x": 49_667_569,
    "fpn_baseline_R_50_FPN_1x": 41_699_936,
    "ablations/table1_single_fc": 41_699_936,
    "ablations/table1_single_conv": 33_391_712,
    "ablations/table1_double_fc": 55_595_616,
    "ablations/table1_double_conv": 38_979_168,
    "ablations/table1_double_head_reverse": 47_287_392,
    "ablations/table1_double_head": 47_287_392,
    "ablations/table2_k1": 42_818_656,
    "ablations/table2_k2": 43_935_840,
    "ablations/table2_k3": 45_053_024,
    "ablations/table2_k4": 46_170_208,
    "ablations/table2_k5": 47_287_392,
    "ablations/table2_k6": 48_404_576,
    "ablations/table2_k7": 49_521_760,
    "ablations/table2_nl_k3": 46_037_600,
    "ablations/table2_nl_k5": 49_256_544,
    "ablations/table2_nl_k7": 52_475_488,
}
# Convolutions of the conv tower alone, as the paper counts, and with biases and norms.
TABLE_2 = {
    "k1": (1_114_112, 1_118_720, "1.06"),
    "k2": (2_228_224, 2_235_904, "2.13"),
    "k3": (3_342_336, 3_353_088, "3.19"),
    "k4": (4_456_448, 4_470_272, "4.25"),
    "k5": (5_570_560, 5_587_456, "5.31"),
    "k6": (6_684_672, 6_704_640, "6.38"),
    "k7": (7_798_784, 7_821_824, "7.44"),
    "nl_k3": (4_325_376, 4_337_664, "4.13"),
    "nl_k5": (7_536_640, 7_556_608, "7.19"),
    "nl_k7": (10_747_904, 10_775_552, "10.25"),
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def count_weights(module):
    """Weights of convolutions and linear layers, without biases and norms."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


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
    assert make_cfg(name).OUTPUT_DIR == f"output/double_head/{name}"
    assert count(build_on_meta(name)) > 10**6


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_size_of_the_whole_model(name, build_on_meta):
    assert count(build_on_meta(name)) == WHOLE_MODELS[name]


def test_no_blocks_are_the_plain_detector(build_on_meta):
    model = build_on_meta(overrides={"MODEL.DOUBLE_HEAD.NUM_BLOCKS": 0})
    assert list(model.roi_heads.box_head) == ["fc"]
    assert count(model) == WHOLE_MODELS["fpn_baseline_R_50_FPN_1x"]


@pytest.mark.parametrize("row", TABLE_2)
def test_size_of_the_conv_tower(row, build_on_meta):
    tower = build_on_meta(f"ablations/table2_{row}").roi_heads.box_head["conv"]
    weights, parameters, printed = TABLE_2[row]
    assert count_weights(tower) == weights
    assert count(tower) == parameters
    # The paper prints millions of 2^20, rounded half up.
    assert f"{int(weights / 2**20 * 100 + 0.5) / 100:.2f}" == printed


def test_size_of_the_fc_tower_and_of_the_predictors(build_on_meta):
    heads = build_on_meta("double_head_ext_R_50_FPN_1x").roi_heads
    assert count_weights(heads.box_head["fc"]) == 13_893_632
    assert count(heads.box_head["fc"]) == 13_895_680
    sizes = {name: count(layer) for name, layer in heads.box_predictor.predictors.items()}
    assert sizes == {"fc_cls": 83_025, "fc_reg": 328_000, "conv_cls": 83_025, "conv_reg": 328_000}
    heads = build_on_meta("voc07/double_head_ext_R_50_FPN").roi_heads
    sizes = {name: count(layer) for name, layer in heads.box_predictor.predictors.items()}
    assert sizes == {"fc_cls": 21_525, "fc_reg": 82_000, "conv_cls": 21_525, "conv_reg": 82_000}


@pytest.mark.parametrize("row", TABLE_1)
def test_table_1_builds_exactly_what_it_trains(row, build_on_meta):
    towers, weights = TABLE_1[row]
    heads = build_on_meta(f"ablations/table1_{row}").roi_heads
    assert list(heads.box_head) == towers
    names = ["fc_cls", "fc_reg", "conv_cls", "conv_reg"]
    expected = {name: weight for name, weight in zip(names, weights) if weight > 0}
    assert heads.box_predictor.plan.loss_weights == expected
    assert list(heads.box_predictor.predictors) == list(expected)


def test_rows_that_stand_in_several_tables_are_one_model(make_cfg):
    pairs = [
        ("ablations/table1_double_head_weighted", "ablations/table2_k5"),
        ("ablations/table2_nl_k5", "double_head_R_50_FPN_1x"),
    ]
    for one, other in pairs:
        a, b = make_cfg(one), make_cfg(other)
        for cfg in (a, b):
            cfg.defrost()
            cfg.OUTPUT_DIR = ""
            # Four weights stand for omega and lambda.
            cfg.MODEL.DOUBLE_HEAD.LOSS_WEIGHTS = cfg.MODEL.DOUBLE_HEAD.LOSS_WEIGHTS or [
                cfg.MODEL.DOUBLE_HEAD.OMEGA_FC,
                0.0,
                0.0,
                cfg.MODEL.DOUBLE_HEAD.OMEGA_CONV,
            ]
        assert a == b


def test_settings_of_the_paper_that_detectron2_has_otherwise(make_cfg):
    for name in ("double_head_R_50_FPN_1x", "fpn_baseline_R_101_FPN_1x", "c4_baseline_R_50_C4_1x"):
        cfg = make_cfg(name)
        assert cfg.MODEL.RPN.SMOOTH_L1_BETA == pytest.approx(1 / 9, abs=1e-4)
        assert cfg.MODEL.RPN.BOUNDARY_THRESH == 0
        assert cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA == 1.0
        assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlign"
        assert cfg.INPUT.MIN_SIZE_TRAIN == (800,)
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (8, 0.01)
        assert (cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS) == (2.0, 0.0)
        assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((120000, 160000), 180000)


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


def test_every_key_is_read(make_cfg):
    cfg = make_cfg(overrides={"MODEL.DEVICE": "meta"})
    node, read = cfg.MODEL.DOUBLE_HEAD, set()
    cfg.MODEL["DOUBLE_HEAD"] = Spy(node, read)
    with torch.device("meta"):
        build_model(cfg)
    keys = {key for key in node if key != "NONLOCAL"} | {f"NONLOCAL.{k}" for k in node.NONLOCAL}
    assert read == keys
