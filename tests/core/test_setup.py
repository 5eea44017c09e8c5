"""The config of every tool: sources in order, projects, safe YAML, errors in a sentence."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from clsloc.config import add_core_config
from clsloc.engine import argument_parser, projects, setup_cfg
from clsloc.engine.config_file import evaluate_arithmetic, load_config_file, resolve_config_file
from clsloc.errors import UserError
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

pytestmark = pytest.mark.usefixtures("forget_datasets")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_core_config_adds_its_node_alone():
    cfg, plain = get_cfg(), get_cfg()
    add_core_config(cfg)
    assert cfg.CLSLOC.LAZY_LOCALISATION is True and cfg.CLSLOC.DATASETS == []
    cfg.pop("CLSLOC")
    assert cfg == plain


def test_later_sources_win(tmp_path):
    file = write(tmp_path / "a.yaml", "SOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 7\n")
    args = argparse.Namespace(config_file=file, opts=["SOLVER.MAX_ITER", "8"])
    cfg = setup_cfg(args, config_file="not read", overrides=["SOLVER.STEPS", "(3,)"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.5, 8, (3,))
    assert cfg.is_frozen()
    assert not setup_cfg(config_file=file, freeze=False).is_frozen()


@pytest.mark.parametrize(
    "name, key",
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "StandardROIHeads"),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "Res5ROIHeads"),
        ("digits/faster_rcnn_R_18_FPN.yaml", "StandardROIHeads"),
    ],
)
def test_names_of_zoo_and_core(name, key):
    assert setup_cfg(config_file=name).MODEL.ROI_HEADS.NAME == key


def test_arithmetic_of_the_stock_retinanet():
    sizes = setup_cfg(config_file="COCO-Detection/retinanet_R_50_FPN_1x.yaml").MODEL
    expected = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
    assert sizes.ANCHOR_GENERATOR.SIZES == expected


@pytest.mark.parametrize(
    "expression, value",
    [("3", 3), ("-2 ** 2 / 8", -0.5), ("(7 // 2, 1.5)", [3, 1.5]), ("[x - y for x in [1]]", None)],
)
def test_arithmetic_by_hand(expression, value):
    if value is None:
        with pytest.raises(ValueError, match="'y' is not allowed"):
            evaluate_arithmetic(expression)
    else:
        assert evaluate_arithmetic(expression) == value


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch {file}"]',
        "!!python/object/apply:eval [\"open('{file}', 'w')\"]",
        '!!python/object/apply:eval ["(1).__class__"]',
        '!!python/object/apply:eval ["9 ** 9 ** 9"]',
        '!!python/object/apply:eval ["[1] * 10 ** 9"]',
        "!!python/name:os.system",
    ],
)
def test_a_config_file_runs_no_code(tmp_path, value):
    trace = tmp_path / "trace"
    file = write(tmp_path / "a.yaml", f"OUTPUT_DIR: {value.format(file=trace)}\n")
    with pytest.raises(UserError, match=r"a\.yaml' cannot be read: .*line 1"):
        setup_cfg(config_file=file)
    assert not trace.exists()


def test_bases(tmp_path):
    write(tmp_path / "base" / "a.yaml", "SOLVER: {MAX_ITER: 1, BASE_LR: 1.0}\nSEED: 1\n")
    write(tmp_path / "base" / "b.yaml", "_BASE_: a.yaml\nSOLVER: {MAX_ITER: 2}\n")
    child = write(tmp_path / "c.yaml", "_BASE_: base/b.yaml\nSEED: 3\n")
    assert load_config_file(child) == {"SOLVER": {"MAX_ITER": 2, "BASE_LR": 1.0}, "SEED": 3}
    many = write(tmp_path / "d.yaml", "_BASE_: [c.yaml, base/a.yaml]\n")
    assert load_config_file(many)["SOLVER"]["MAX_ITER"] == 1
    core = write(tmp_path / "e.yaml", "_BASE_: Base-Digits-RCNN-FPN.yaml\n")
    assert setup_cfg(config_file=core).MODEL.ROI_HEADS.NUM_CLASSES == 10
    circle = write(tmp_path / "f.yaml", "_BASE_: f.yaml\n")
    with pytest.raises(UserError, match="is its own _BASE_"):
        load_config_file(circle)


@pytest.mark.parametrize(
    "text, message",
    [
        ("SOLVER: {NO_SUCH_KEY: 1}", r"a\.yaml' does not fit: .*SOLVER.NO_SUCH_KEY"),
        ("SOLVER: {MAX_ITER: many}", r"a\.yaml' does not fit: .*MAX_ITER"),
        ("SOLVER: [", r"a\.yaml' cannot be read"),
        ("- 1", "holds no mapping"),
        ("VERSION: 1", "has VERSION 1"),
        ("_BASE_: gone.yaml", r"gone\.yaml' does not exist"),
        ("_BASE_: 3", r"a\.yaml' must be a file or a list of files, got 3"),
        ("_BASE_:", "must be a file or a list of files, got None"),
        ("MODEL: {DEVICE: }", r"MODEL.DEVICE has no value; give it one or remove it"),
        ("MODEL: {3: 1}", "the key MODEL.3 is no text"),
    ],
)
def test_faults_of_a_file_in_a_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        setup_cfg(config_file=write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["SEED"], "'SEED' stands alone"),
        (["SOLVER.NO_SUCH_KEY", "1"], "SOLVER.NO_SUCH_KEY"),
        (["SOLVER.MAX_ITER", "many"], "MAX_ITER"),
    ],
)
def test_faults_of_overrides_in_a_sentence(overrides, message):
    with pytest.raises(UserError, match=message):
        setup_cfg(overrides=overrides)


def test_missing_config_file():
    with pytest.raises(UserError, match=r"'gone\.yaml' does not exist; give"):
        resolve_config_file("gone.yaml")


def test_no_cuda_means_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO", logger="clsloc"):
        cfg = setup_cfg(overrides=["MODEL.DEVICE", "cuda:1", "SOLVER.AMP.ENABLED", "True"])
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED
    assert "MODEL.DEVICE is now cpu" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup_cfg().MODEL.DEVICE == "cuda"


def test_flags(coco_folder, voc_folder):
    json_file, root = coco_folder([])
    directory = voc_folder({"train": []}, {})
    flags = ["--coco", "a", json_file, root, "--voc", "b", directory, "train"]
    flags += ["--coco", "c", json_file, root, "SEED", "5"]
    args = argument_parser().parse_args(flags)
    assert args.dist_url == "auto"
    cfg = setup_cfg(args)
    assert {"a", "b", "c"} <= set(DatasetCatalog.list())
    assert cfg.SEED == 5
    assert cfg.CLSLOC.DATASETS == [
        ["a", "coco", json_file, root],
        ["c", "coco", json_file, root],
        ["b", "voc", directory, "train"],
    ]


def test_a_stored_config_gives_the_same_config(tmp_path, coco_folder):
    first = setup_cfg(argument_parser().parse_args(["--coco", "a", *coco_folder([])]))
    stored = write(tmp_path / "config.yaml", first.dump())
    assert yaml.safe_load(setup_cfg(config_file=stored).dump()) == yaml.safe_load(first.dump())


def test_projects_of_the_tree(tmp_path, monkeypatch):
    code = "def add_paper_x_config(cfg):\n    cfg.MODEL.PAPER_X = type(cfg)({'KEY': 1})\n"
    write(tmp_path / "paper_x" / "paper_x" / "__init__.py", code)
    write(tmp_path / "paper_x" / "tools" / "__init__.py", "raise RuntimeError\n")
    monkeypatch.setattr(projects, "IN_TREE", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(projects, "entry_points", lambda group: [])
    assert list(projects.find_projects()) == ["paper_x"]
    cfg = setup_cfg(overrides=["MODEL.PAPER_X.KEY", "2"], freeze=False)
    projects.add_project_configs(cfg)
    assert cfg.MODEL.PAPER_X.KEY == 2  # adding twice resets nothing


def test_an_installed_project_wins(tmp_path, monkeypatch):
    def add_paper_y_config(cfg):
        cfg.MODEL.PAPER_Y = type(cfg)({"INSTALLED": True})

    write(tmp_path / "paper_y" / "paper_y" / "__init__.py", "raise RuntimeError\n")
    monkeypatch.setattr(projects, "IN_TREE", tmp_path)
    entry = SimpleNamespace(name="paper_y", load=lambda: add_paper_y_config)
    monkeypatch.setattr(projects, "entry_points", lambda group: [entry])
    assert setup_cfg().MODEL.PAPER_Y.INSTALLED
    monkeypatch.setattr(projects, "entry_points", lambda group: [])
    monkeypatch.setattr(projects, "IN_TREE", tmp_path / "none")
    assert setup_cfg(config_functions=[add_paper_y_config]).MODEL.PAPER_Y.INSTALLED


def test_importing_the_package_is_light():
    code = "import sys, clsloc; assert {'torch', 'detectron2', 'numpy'}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["SEED", "1", "SOLVER.MAX_ITER", "many", "VIS_PERIOD", "2"],
         "The override 'SOLVER.MAX_ITER many' does not fit: "),
        (["SEED.X", "1"], "The override 'SEED.X 1' does not fit: Non-existent key: SEED.X."),
        (["DATASETS.TRAIN", "a, b"], """; write "('a', 'b')"."""),
        (["DATASETS.TRAIN", "digits_train"],
         """ does not fit: DATASETS.TRAIN is a list; write "('digits_train',)"."""),
        (["INPUT.MIN_SIZE_TRAIN", "64"], """INPUT.MIN_SIZE_TRAIN is a list; write "(64,)"."""),
        (["SOLVER.STEPS", "many"], "SOLVER.STEPS is a list; write it as (30000,)."),
        (["SOLVER.BASE_LR", "True"], "The override 'SOLVER.BASE_LR True' does not fit: Type"),
    ],
)  # fmt: skip
def test_only_the_override_that_does_not_fit_is_quoted(overrides, message):
    with pytest.raises(UserError) as caught:
        setup_cfg(overrides=overrides)
    assert message in str(caught.value) and "SEED 1" not in str(caught.value)


def test_a_whole_number_is_a_float_where_the_config_has_one():
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0", "SOLVER.BASE_LR", 1, "SOLVER.MAX_ITER", "3"]
    cfg = setup_cfg(overrides=keys)
    values = (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER)
    assert values == (0.0, 1.0, 3) and [type(value) for value in values] == [float, float, int]


@pytest.mark.parametrize("device", ["gpu", "banana", "cudax", "cuda:-1", "", "None"])
def test_a_device_that_is_none(device):
    with pytest.raises(UserError, match=r"MODEL\.DEVICE .* is no device; choose cpu, cuda, or"):
        setup_cfg(overrides=["MODEL.DEVICE", device])


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1", "mps", "meta"):
        assert setup_cfg(overrides=["MODEL.DEVICE", device]).MODEL.DEVICE == device
    with pytest.raises(UserError, match=r"'cuda:2' does not exist: this machine has 2 GPU\(s\)"):
        setup_cfg(overrides=["MODEL.DEVICE", "cuda:2"])


@pytest.mark.parametrize(
    "key, value",
    [
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MIN_SIZE_TRAIN", "(64, -1)"),
        ("INPUT.MIN_SIZE_TRAIN", "('a',)"),
        ("INPUT.MAX_SIZE_TRAIN", "0"),
        ("INPUT.MIN_SIZE_TEST", "-1"),
        ("INPUT.MAX_SIZE_TEST", "0"),
        ("TEST.AUG.MAX_SIZE", "0"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choose"),
        ("INPUT.RANDOM_FLIP", "diagonal"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norms"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.5"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0"),
        ("MODEL.RETINANET.NUM_CLASSES", "-1"),
        ("CLSLOC.BEST.PATIENCE", "-1"),
    ],
)
def test_values_that_cannot_be(key, value):
    with pytest.raises(UserError, match=f"^{key} must be .*, got .*{value.strip('()')[-3:]}"):
        setup_cfg(overrides=[key, value])


def test_a_range_of_lengths_has_two_ends():
    keys = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN"]
    with pytest.raises(UserError, match=r"smallest and the largest length, .* got \(64,\)"):
        setup_cfg(overrides=[*keys, "(64,)"])
    assert setup_cfg(overrides=[*keys, "(64, 0)", "INPUT.MIN_SIZE_TEST", "0"])
