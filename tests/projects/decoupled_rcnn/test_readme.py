"""The README names every config, and nothing that is not there."""

import re
from pathlib import Path
from xml.etree import ElementTree

PROJECT = Path(__file__).parents[3] / "projects" / "decoupled_rcnn"
README = (PROJECT / "README.md").read_text(encoding="utf-8")
LINKS = [
    link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))
]


def test_every_link_exists():
    assert LINKS
    assert [link for link in LINKS if not (PROJECT / link).exists()] == []


def test_every_config_is_named():
    files = [p for p in PROJECT.glob("configs/**/*.yaml") if not p.name.startswith("Base-")]
    missing = {str(path.relative_to(PROJECT)) for path in files} - set(LINKS)
    assert not missing


def test_every_path_in_a_command_exists():
    (commands,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    paths = re.findall(r"\S+\.(?:yaml|py)", commands)
    assert len(paths) > 5
    assert [path for path in paths if not (PROJECT / path).exists()] == []


def test_the_figure_is_well_formed():
    assert ElementTree.parse(PROJECT / "architecture.svg").getroot().tag.endswith("svg")
