"""Installs the core, every project of ``projects/`` and the embedded runtime."""

import base64
import hashlib
import re
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent

# A line of a .pth file that starts with "import" is run at every interpreter start. It must not
# raise when an editable install outlives its folder.
PTH_NAME = "detectron2_lite.pth"
PTH_LINE = (
    "import sys; exec('try:\\n import detectron2_lite\\nexcept ImportError:\\n pass\\n"
    "else:\\n detectron2_lite.install()')\n"
)

CORE_PACKAGES = find_packages(str(ROOT), include=["clsloc*", "detectron2_lite*"])
# projects/<name>/<name>/ is the importable package <name>.
PROJECTS = {
    init.parent.name: init.parent
    for init in sorted(ROOT.glob("projects/*/*/__init__.py"))
    if init.parent.name == init.parent.parent.name
}


def project_packages() -> list[str]:
    return [
        package
        for name, folder in PROJECTS.items()
        for package in [name, *(f"{name}.{sub}" for sub in find_packages(str(folder)))]
    ]


def version() -> str:
    text = (ROOT / "clsloc" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


class BuildWithPth(build_py):
    """Adds the start-up file to a normal wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, PTH_NAME).write_text(PTH_LINE, encoding="utf-8")


class EditableWithPth(editable_wheel):
    """Adds the start-up file to an editable wheel, which leaves out what ``build_py`` writes.

    It names the folders of the projects too. With plain folders on ``sys.path``, rather than the
    import hook that setuptools would write for them, a folder that happens to be called ``clsloc``
    or like a project in the working directory does not hide the package.
    """

    def run(self) -> None:
        self.distribution.packages = CORE_PACKAGES
        self.package_dir = {"": "."}
        super().run()
        folders = [f"{folder.parent}\n" for folder in PROJECTS.values()]
        for wheel in Path(self.dist_dir).glob("*.whl"):
            add_to_wheel(wheel, PTH_NAME, "".join([*folders, PTH_LINE]))


def add_to_wheel(wheel: Path, name: str, text: str) -> None:
    """Add a file to the root of a wheel and list it in its RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    data = text.encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        for info, content in files.items():
            if info.filename.endswith(".dist-info/RECORD"):
                content = f"{name},sha256={digest},{len(data)}\n".encode() + content
            archive.writestr(info, content)


setup(
    name="clsloc",
    version=version(),
    description="Detectors that decouple classification and localisation, as Detectron2 projects",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=CORE_PACKAGES + project_packages(),
    package_dir={name: str(folder.relative_to(ROOT)) for name, folder in PROJECTS.items()},
    package_data={
        "clsloc": ["configs/**/*.yaml"],
        "detectron2_lite": ["README.md", "detectron2/**/*.yaml"],
    },
    entry_points={
        "clsloc.projects": [f"{name} = {name}:add_{name}_config" for name in PROJECTS],
    },
    cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth},
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "cloudpickle",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9",
        "matplotlib",
        "numpy",
        "pillow",
        "pycocotools>=2.0.7",
        "pyyaml",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "tabulate",
        "tensorboard",
        "termcolor",
        "tqdm",
        "yacs",
    ],
    extras_require={
        # Not a requirement: this package and opencv-python overwrite each other's files, so it
        # must not be installed beside an OpenCV that is already there.
        "opencv": ["opencv-python-headless"],
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "ruff", "setuptools>=70.1"],
        # What a clone of Detectron2 on the path imports beyond the above.
        "dev-real": ["hydra-core", "omegaconf", "setuptools<81"],
    },
)
