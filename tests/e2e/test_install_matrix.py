"""A real Detectron2 always wins, the embedded runtime is found otherwise: every kind of install.

Real and ours are installed in turn into small virtual environments that borrow the packages of
the one that runs the tests. The real one is a stand-in of two modules.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
REAL, EMBEDDED = "fake-real", "embedded"

# Prints which detectron2 the process and a spawned child got; the child has to unpickle one of
# its functions before it imports anything of ours.
PROBE = """
import json, multiprocessing, sys

if __name__ == "__main__":
    for name in sys.argv[1:]:
        __import__(name)
    import detectron2.config
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply_async(detectron2.config.get_cfg).get(timeout=60)
        child = pool.apply(eval, ("__import__('detectron2').__file__",))
    print(json.dumps([detectron2.__file__, child]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of this repository, a stand-in of Detectron2, and a wheel of each."""
    root = tmp_path_factory.mktemp("sources")
    ours = root / "ours"
    for name in ("clsloc", "detectron2_lite", "projects"):
        if (REPO / name).exists():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPO / name, ours / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, ours)

    real = root / "real"
    (real / "detectron2").mkdir(parents=True)
    (real / "detectron2" / "__init__.py").write_text(f"__version__ = {REAL!r}\n")
    (real / "detectron2" / "config.py").write_text("def get_cfg():\n    return {}\n")
    (real / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='detectron2', version='0.7', packages=['detectron2'],\n"
        "      package_dir={'detectron2': './detectron2'})\n"
    )
    for folder in (ours, real):
        pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(root), str(folder))
    return root


def pip(*args: str, python: str | Path = sys.executable) -> None:
    """Run the pip of this environment on another one."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--no-input", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_env(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def clean_env(**extra: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | extra


class Environment:
    """A virtual environment and a working directory that holds a folder called detectron2."""

    def __init__(self, folder: Path, sources: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        self.site_packages = next(folder.glob("lib/python*/site-packages"))
        # A path line adds the borrowed packages without running their own .pth files.
        (self.site_packages / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.sources = sources
        self.workdir = folder / "work"
        (self.workdir / "detectron2" / "projects").mkdir(parents=True)
        (self.workdir / "probe.py").write_text(PROBE)

    def install(self, what: str, mode: str) -> None:
        if mode == "wheel":
            (wheel,) = self.sources.glob({"ours": "clsloc-*", "real": "detectron2-*"}[what])
            target = [str(wheel)]
        else:
            target = ["--no-build-isolation", "-e", str(self.sources / what)]
        pip("install", "--no-deps", *target, python=self.python)

    def uninstall(self, name: str) -> None:
        pip("uninstall", "-y", name, python=self.python)

    def used(self, **env: str) -> str:
        """Which detectron2 is used, the same in both import orders and in spawned children."""
        found = set()
        for order in (["clsloc", "detectron2"], ["detectron2", "clsloc"]):
            command = [str(self.python), "-m", "probe", *order]
            done = subprocess.run(
                command,
                cwd=self.workdir,
                env=clean_env(**env),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert not done.stderr, "something failed at interpreter start"
            found.update(json.loads(done.stdout))
        (file,) = found
        return EMBEDDED if "detectron2_lite" in file else REAL


@pytest.fixture
def environment(tmp_path: Path, sources: Path) -> Environment:
    return Environment(tmp_path / "env", sources)


@pytest.mark.parametrize("ours", ["wheel", "editable"])
def test_real_one_comes_later_and_goes_again(environment: Environment, ours: str) -> None:
    environment.install("ours", ours)
    assert environment.used() == EMBEDDED
    assert environment.used(PYTHONPATH=str(environment.sources / "real")) == REAL
    for mode in ("wheel", "editable"):
        environment.install("real", mode)
        assert environment.used() == REAL, mode
        environment.uninstall("detectron2")
        assert environment.used() == EMBEDDED, mode

    environment.uninstall("clsloc")
    left = {path.name for path in environment.site_packages.iterdir()}
    assert left == {"zz_borrowed.pth"}


@pytest.mark.parametrize("ours", ["wheel", "editable"])
@pytest.mark.parametrize("real", ["wheel", "editable"])
def test_real_one_was_there_before(environment: Environment, ours: str, real: str) -> None:
    environment.install("real", real)
    environment.install("ours", ours)
    assert environment.used() == REAL
    environment.uninstall("clsloc")
    command = [str(environment.python), "-c", "import detectron2; print(detectron2.__version__)"]
    version = subprocess.run(command, capture_output=True, text=True, env=clean_env(), check=True)
    assert version.stdout.strip() == REAL


def test_folders_named_like_our_packages_hide_nothing(environment: Environment) -> None:
    environment.install("ours", "editable")
    for name in ("clsloc", "double_head", "detectron2_lite"):
        (environment.workdir / name).mkdir()
    code = "import clsloc, detectron2.config; print(clsloc.__file__)"
    done = subprocess.run(
        [str(environment.python), "-c", code],
        cwd=environment.workdir,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(environment.sources / "ours" / "clsloc" / "__init__.py")


def test_an_editable_install_may_outlive_its_folder(environment: Environment) -> None:
    environment.install("ours", "editable")
    pth = environment.site_packages / "detectron2_lite.pth"
    folder = environment.sources / "ours"
    moved = folder.rename(folder.with_name("moved"))
    try:
        done = subprocess.run(
            [str(environment.python), "-c", ""],
            env=clean_env(),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        moved.rename(folder)
    assert pth.exists()
    assert (done.returncode, done.stderr) == (0, "")


def test_wheel_holds_what_it_should_and_no_top_level_detectron2(sources: Path) -> None:
    (wheel,) = sources.glob("clsloc-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    ours = sources / "ours"
    projects = {
        init.parent.name
        for init in ours.glob("projects/*/*/__init__.py")
        if init.parent.name == init.parents[1].name
    }
    dist_info = {top for top in tops if top.endswith(".dist-info")}
    assert tops - dist_info == {"clsloc", "detectron2_lite", "detectron2_lite.pth", *projects}
    for package in ("clsloc", "detectron2_lite"):
        for file in (ours / package).rglob("*"):
            if file.suffix in (".py", ".yaml"):
                assert str(file.relative_to(ours)) in names
