"""The README names every config, and nothing that is not there."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[3] / "projects" / "ddod"
README = (PROJECT / "README.md").read_text(encoding="utf-8")
LINKS = [
    link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))
]


def test_every_link_exists():
    assert LINKS
    assert [link for link in LINKS if not (PROJECT / link).exists()] == []


def test_every_config_is_named():
    files = PROJECT.glob("configs/**/*.yaml")
    files = [path for path in files if not path.name.startswith("Base-")]
    missing = {str(path.relative_to(PROJECT)) for path in files} - set(LINKS)
    assert not missing


def test_every_path_in_a_command_exists():
    (commands,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    paths = re.findall(r"\S+\.(?:yaml|py)", commands)
    assert len(paths) > 5
    assert [path for path in paths if not (PROJECT / path).exists()] == []
