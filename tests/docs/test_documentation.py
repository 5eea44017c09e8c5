"""Every link of the documentation leads somewhere, and every command is one that works."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from clsloc.engine import argument_parser, setup_cfg

REPO = Path(__file__).parents[2]
PROJECT_PAGES = sorted(REPO.glob("projects/*/README.md"))
PAGES = [
    REPO / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
    *PROJECT_PAGES,
    REPO / "detectron2_lite" / "README.md",
]
NAMES = [str(page.relative_to(REPO)) for page in PAGES]
# What CI's own environment runs before any test.
INSTALLS = re.compile(r"(python -m )?pip install (-c constraints\.txt )?-e \.(\[[\w,-]+\])?$")
QUICK = """
    MODEL.DEVICE cpu SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 TEST.EVAL_PERIOD 0
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
"""


def commands_of(page: Path) -> list[tuple[Path, list[str]]]:
    """The commands of the shell blocks of a page, each with the folder that it is given in."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        folder = REPO
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["cd"]:
                folder = REPO / words[1]
            elif words:
                found.append((folder, words))
    return found


COMMANDS = [
    pytest.param(folder, words, id=f"{name}-{i}")
    for name, page in zip(NAMES, PAGES)
    for i, (folder, words) in enumerate(commands_of(page))
]


def links_of(page: Path) -> list[str]:
    """The files that a page leads to, without the heading behind a #."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [link for link in links if not link.startswith("http")]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    page = REPO / name
    files = [page.parent / link for link in links_of(page)]
    assert [file for file in files if not file.exists()] == []
    for file in files:
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag.endswith("svg")


@pytest.mark.parametrize("page", PROJECT_PAGES, ids=lambda page: page.parent.name)
def test_every_config_and_program_of_a_project_is_named(page):
    project = page.parent
    files = [*project.glob("configs/**/*.yaml"), *project.glob("tools/*.py")]
    wanted = {path.relative_to(project).as_posix() for path in files if path.name[:5] != "Base-"}
    assert wanted and wanted <= set(links_of(page))


@pytest.mark.parametrize(("folder", "words"), COMMANDS)
def test_every_command_is_understood(folder, words, monkeypatch, forget_datasets):
    """Its program takes the flags, its config exists and has the keys."""
    monkeypatch.chdir(folder)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    if INSTALLS.match(" ".join(words)):
        return
    assert words[0] == "python", words
    program = words[3:] if words[1] == "-m" else words[2:]
    if words[1:3] == ["-m", "clsloc.env"]:
        return
    parser = argument_parser() if "train" in " ".join(words[1:3]) else parser_of(words[1])
    args = parser.parse_args(program)
    config_file = getattr(args, "config_file", None)
    if config_file and not config_file.startswith("output/"):  # as a command before makes one
        functions = sixth_paper(monkeypatch) if "sixth_paper" in words[1] else []
        setup_cfg(args, config_functions=functions)
    for config in getattr(args, "configs", ()):
        flags = [word for text in args.flag for word in shlex.split(text)]
        argument_parser().parse_args(["--config-file", config, *flags, *args.opts])
        setup_cfg(config_file=config, overrides=args.opts)


def parser_of(program: str):
    spec = importlib.util.spec_from_file_location(f"documented_{Path(program).stem}", program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


def sixth_paper(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "docs" / "sixth_paper"))
    return [importlib.import_module("kl_loss.config").add_kl_loss_config]


@pytest.fixture
def workplace(tmp_path):
    """A folder with images of two classes, their lists, and links to what a clone holds."""
    for name in ("projects", "tools", "docs", "clsloc"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(4):
        image = np.full((64, 96, 3), 90, np.uint8)
        cv2.rectangle(image, (20, 10), (60, 50), (255, 60 * i, 0), -1)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
        box = {"bbox": [20, 10, 40, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": i % 2 + 1, **box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "dark"}, {"id": 2, "name": "light"}],
    }
    for part in ("train", "val"):
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", "docs/custom_data.md"])
def test_commands_on_data_of_ones_own_run_as_they_stand(name, workplace):
    """In the order of the page; the schedule alone is cut short."""
    done = []
    for _, words in commands_of(REPO / name):
        if not re.search(r"--coco|output/my_run|resnet18-f37072fd\.pth", " ".join(words)):
            continue
        takes_config = re.search("--config", " ".join(words))
        quick = shlex.split(QUICK) if takes_config else []
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path()}
        result = subprocess.run(
            [sys.executable, *words[1:], *quick],
            cwd=workplace,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (words, result.stderr)
        done.append(words[1])
    assert len(done) >= 3
    code = re.findall(r"```python\n(.*?)```", (REPO / name).read_text(), re.DOTALL)
    for block in code:
        subprocess.run([sys.executable, "-c", block], cwd=workplace, env=environment, check=True)


def path() -> str:
    """What this process imports from, so that a clone that is not installed works as well."""
    return os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(REPO)]).strip(os.pathsep)
