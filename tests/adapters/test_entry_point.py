"""A package of somebody else's that adds a family, really installed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

# By their metadata: to look for the module pip makes setuptools put distutils back, for the whole process.
installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
needed = sorted({"pip", "setuptools"} - installed)
pytestmark = pytest.mark.skipif(bool(needed), reason=f"no package {', '.join(needed)} to install with")

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "somebodys-inpainting"
version = "1.0"

[project.entry-points."inpaint_distill.adapters"]
somebodys = "somebodys_inpainting:SomebodysAdapter"

[tool.setuptools]
py-modules = ["somebodys_inpainting"]
"""

MODULE = """
from torch import nn

from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention


class Painter(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.near = nn.Conv2d(4, width, 3, padding=1)
        self.far = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.back = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)

    def forward(self, x):
        return self.back(self.far(self.near(x).relu()).relu()).tanh()


class SomebodysAdapter(Adapter):
    name = "somebodys"
    variants = (
        Variant(
            source="somebody/inpainting",
            kind="Painter",
            has=("near", "far"),
            convention=Convention("image+hole"),
            stages=("near", "far"),
            attention=(),
        ),
    )

    def build(self, **kwargs):
        return Painter(**kwargs)
"""

PROGRAM = """
from inpaint_distill import adapters

print(list(adapters.families())[-1])

from somebodys_inpainting import Painter

print(adapters.find(Painter()).name)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the package into a folder of its own and return that folder."""
    folder = tmp_path_factory.mktemp("somebody")
    package, target = folder / "package", folder / "site"
    package.mkdir()
    (package / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (package / "somebodys_inpainting.py").write_text(MODULE, encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def python(site, *arguments):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_adds_its_family_and_its_hosts_are_known(site):
    assert python(site, "-c", PROGRAM).split() == ["somebodys", "somebodys"]


def test_the_command_line_plans_its_host(site):
    printed = python(site, "-m", "inpaint_distill.cli", "plan", "somebodys", "--size", "32")
    assert "Painter, dry run on" in printed
    assert "adapter 'somebodys'" in printed
    assert [line.split()[0] for line in printed.splitlines() if "NCHW" in line] == ["near", "far"]
