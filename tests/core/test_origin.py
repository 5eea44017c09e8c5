"""Where figures come from."""

import re
import subprocess

from clsloc import origin


def test_the_hardware_is_told():
    assert "cores" in origin.hardware()


def test_the_commit_is_that_of_our_own_source(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)

    file = tmp_path / "origin.py"
    file.write_text("")
    monkeypatch.setattr(origin, "__file__", str(file))
    assert origin.commit() is None  # no repository
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    assert origin.commit() is None  # installed inside of another repository
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    assert re.fullmatch("[0-9a-f]{7,}", origin.commit())
    file.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{7,}\+", origin.commit())
    monkeypatch.setenv("PATH", "")
    assert origin.commit() is None  # no git
