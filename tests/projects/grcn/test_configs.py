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
