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
