"""Config nodes, the default config and ``configurable``, on either Detectron2."""

import hashlib

import pytest
import yaml

from detectron2.config import (
    CfgNode,
    LazyCall,
    LazyConfig,
    configurable,
    downgrade_config,
    get_cfg,
    global_cfg,
    instantiate,
    set_global_cfg,
    upgrade_config,
)


@pytest.fixture
def write(tmp_path):
    """Writes a config file below tmp_path and returns its path."""

    def _write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return _write


# Default config


def test_default_config_is_that_of_detectron2():
    # Detectron2 main of 2026-06-06. On a difference, compare get_cfg().dump() of both.
    digest = hashlib.sha256(repr(_leaves(get_cfg())).encode()).hexdigest()[:16]
    assert digest == "39712ea021a1ba77"


def test_default_values_that_other_code_relies_on():
    cfg = get_cfg()
    assert cfg.VERSION == 2
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 80
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None


def test_get_cfg_returns_independent_unfrozen_copies():
    first, second = get_cfg(), get_cfg()
    first.MODEL.PIXEL_MEAN[0] = -1.0
    first.MODEL.MASK_ON = True
    assert second.MODEL.PIXEL_MEAN[0] == 103.53
    assert not second.MODEL.MASK_ON
    assert not second.is_frozen()
    assert type(second.MODEL.ROI_HEADS) is CfgNode


def test_dump_can_be_merged_back(write):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.INPUT.MIN_SIZE_TRAIN = (192,)
    again = get_cfg()
    again.merge_from_file(write("dump.yaml", cfg.dump()), allow_unsafe=False)
    # Not the nodes: tuples inside of tuples come back as lists.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert again.INPUT.MIN_SIZE_TRAIN == (192,)


def test_global_config_holds_what_was_set():
    cfg = get_cfg()
    cfg.OUTPUT_DIR = "somewhere"
    set_global_cfg(cfg)
    assert global_cfg.OUTPUT_DIR == "somewhere"
    assert global_cfg.MODEL is cfg.MODEL


# Files


def test_own_values_win_over_the_base(write):
    write("base.yaml", "MODEL: {WEIGHTS: base, MASK_ON: true}\n")
    cfg = get_cfg()
    cfg.merge_from_file(write("sub/leaf.yaml", "_BASE_: ../base.yaml\nMODEL: {WEIGHTS: leaf}\n"))
    assert cfg.MODEL.WEIGHTS == "leaf"
    assert cfg.MODEL.MASK_ON
    assert "_BASE_" not in cfg


def test_a_later_base_wins_over_an_earlier_one(write):
    write("one.yaml", "MODEL: {WEIGHTS: one, MASK_ON: true}\n")
    write("two.yaml", "MODEL: {WEIGHTS: two}\n")
    cfg = get_cfg()
    cfg.merge_from_file(write("leaf.yaml", "_BASE_: [one.yaml, two.yaml]\nSEED: 7\n"))
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON, cfg.SEED) == ("two", True, 7)


def test_lists_become_tuples_where_the_default_is_one(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "SOLVER: {STEPS: [1, 2]}\nINPUT: {FORMAT: RGB}\n"))
    assert cfg.SOLVER.STEPS == (1, 2)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("MODEL: {NO_SUCH_KEY: 1}\n", KeyError),
        ("MODEL: {WEIGHTS: 3}\n", ValueError),
        ("VERSION: 3\n", AssertionError),
        ("_BASE_: missing.yaml\n", FileNotFoundError),
    ],
)
def test_wrong_files_are_refused(write, text, error):
    with pytest.raises(error):
        get_cfg().merge_from_file(write("wrong.yaml", text))


def test_missing_file_is_named():
    with pytest.raises(AssertionError, match=r"no_such_file\.yaml"):
        get_cfg().merge_from_file("no_such_file.yaml")


def test_files_merge_only_into_the_latest_version(write):
    cfg = get_cfg()
    cfg.VERSION = 1
    with pytest.raises(AssertionError, match="version"):
        cfg.merge_from_file(write("a.yaml", "SEED: 1\n"))


def test_new_keys_where_allowed(write):
    cfg = get_cfg()
    cfg.MODEL.set_new_allowed(True)
    cfg.merge_from_file(write("a.yaml", "MODEL: {MINE: {K: 5}}\n"))
    assert cfg.MODEL.MINE.K == 5


def test_object_tags_only_when_unsafe_is_allowed(write):
    path = write("a.yaml", "SEED: !!python/object/apply:eval ['3 * 4']\n")
    cfg = get_cfg()
    with pytest.raises(yaml.constructor.ConstructorError):
        cfg.merge_from_file(path, allow_unsafe=False)
    assert cfg.SEED == -1
    cfg.merge_from_file(path)
    assert cfg.SEED == 12


def test_frozen_config_refuses_assignment():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.MODEL.MASK_ON = True


def test_overrides_from_a_list():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a', 'b')"])
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.DATASETS.TRAIN == ("a", "b")
    with pytest.raises(AssertionError):
        cfg.merge_from_list(["SOLVER.NO_SUCH_KEY", "1"])


# Versions


def test_conversion_to_the_own_version_copies():
    cfg = get_cfg()
    for converted in (upgrade_config(cfg), downgrade_config(cfg, 2)):
        assert converted == cfg
        assert converted is not cfg


def test_conversion_in_the_wrong_direction_is_refused():
    with pytest.raises(AssertionError):
        upgrade_config(get_cfg(), 1)
    with pytest.raises(AssertionError):
        downgrade_config(get_cfg(), 3)


def test_names_of_lazy_configs_can_be_imported():
    for name in (LazyCall, LazyConfig, instantiate):
        assert callable(name)


# configurable


class _Head:
    @configurable
    def __init__(self, width, depth=2, *, norm=""):
        """Doc of the head."""
        self.arguments = (width, depth, norm)

    @classmethod
    def from_config(cls, cfg, depth=None):
        arguments = {"width": cfg.WIDTH}
        if depth is not None:
            arguments["depth"] = depth + 10
        return arguments


class _WiderHead(_Head):
    @configurable
    def __init__(self, *, extra, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

    @classmethod
    def from_config(cls, cfg, **kwargs):
        return {**super().from_config(cfg, **kwargs), "extra": cfg.WIDTH + 1}


@pytest.fixture
def cfg():
    return CfgNode({"WIDTH": 5})


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (5, 2, "")),
        ({"norm": "GN"}, (5, 2, "GN")),  # not known to from_config: goes to __init__
        ({"depth": 3}, (5, 13, "")),  # known to from_config: goes there
        ({"width": 6}, (6, 2, "")),  # wins over the config
    ],
)
def test_class_from_config(cfg, kwargs, expected):
    assert _Head(cfg, **kwargs).arguments == expected
    assert _Head(cfg=cfg, **kwargs).arguments == expected


def test_class_with_explicit_arguments():
    assert _Head(1, 4, norm="BN").arguments == (1, 4, "BN")
    assert _Head.__init__.__doc__ == "Doc of the head."


def test_positional_arguments_reach_from_config(cfg):
    assert _Head(cfg, 3).arguments == (5, 13, "")


def test_subclass_adds_an_argument(cfg):
    head = _WiderHead(cfg, depth=1)
    assert head.arguments == (5, 11, "")
    assert head.extra == 6


def test_unknown_argument_is_a_type_error(cfg):
    with pytest.raises(TypeError, match="unknown"):
        _Head(cfg, unknown=1)
    with pytest.raises(TypeError, match="from_config"):
        _Head(cfg, 1, 2)


def test_class_without_from_config():
    class NoFromConfig:
        @configurable
        def __init__(self, a=1):
            pass

    with pytest.raises(AttributeError, match="from_config"):
        NoFromConfig(a=1)


def test_from_config_must_be_a_classmethod():
    class Plain:
        @configurable
        def __init__(self, a=1):
            pass

        def from_config(self, cfg):
            return {}

    with pytest.raises(TypeError, match="from_config"):
        Plain(a=1)


def test_first_argument_of_from_config_must_be_cfg(cfg):
    class BadName:
        @configurable
        def __init__(self, a=1):
            pass

        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(TypeError, match="cfg"):
        BadName(cfg)


@pytest.mark.parametrize("wrong", [3, lambda self: None])
def test_without_arguments_only_init_is_decorated(wrong):
    with pytest.raises(AssertionError):
        configurable(wrong)
    with pytest.raises(AssertionError):
        configurable(from_config=3)


def test_function_from_config(cfg):
    @configurable(from_config=lambda cfg, depth=2: {"width": cfg.WIDTH, "depth": depth})
    def build(width, depth, norm=""):
        return width, depth, norm

    assert build(1, 4) == (1, 4, "")
    assert build(cfg) == (5, 2, "")
    assert build(cfg=cfg, depth=3, norm="GN") == (5, 3, "GN")
    assert build(cfg, width=6) == (6, 2, "")
    assert callable(build.from_config)


def _leaves(node: CfgNode, prefix: str = "") -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for key in sorted(node):
        value = node[key]
        if isinstance(value, CfgNode):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves
