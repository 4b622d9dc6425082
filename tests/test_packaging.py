"""What is installed: every package, the type marker, the adapters by three roads, and nothing heavy on import."""

import ast
import configparser
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="needs the repository, not an installation")


def options():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options"]


# Coverage would count the copy that the wheel holds as files of its own.
UNCOUNTED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


def python(script, *path, cwd=None):
    """Run a script that finds packages under ``path`` first and never by an editable install."""
    prelude = f"""
import sys
sys.path[:0] = {[str(each) for each in path]!r}
sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', repr(f)).lower()
                    and 'editable' not in getattr(f, '__name__', '').lower()]
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", prelude + script],
        capture_output=True,
        text=True,
        cwd=cwd or "/",
        env=UNCOUNTED,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_setup_cfg_lists_exactly_the_packages_that_exist():
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "inpaint_distill").rglob("__init__.py")}
    found |= {
        ".".join(("inpaint_distill", *file.parent.relative_to(ROOT).parts))
        for file in (ROOT / "adapters").rglob("__init__.py")
    }
    assert set(options()["packages"].split()) == found


def test_every_folder_with_code_is_a_package():
    for top in ("inpaint_distill", "adapters"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_the_version_is_stated_once_in_effect():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f'__version__ = "{project["version"]}"' in (ROOT / "inpaint_distill" / "__init__.py").read_text("utf-8")


def test_the_public_names_exist_and_are_sorted():
    import inpaint_distill

    assert inpaint_distill.__all__ == sorted(inpaint_distill.__all__)
    assert all(hasattr(inpaint_distill, name) for name in inpaint_distill.__all__)


IMPORTS = """
import inpaint_distill
import inpaint_distill.adapters as adapters
from inpaint_distill import adapters as same
assert same is adapters
print(sorted(adapters.families()))
print(adapters.get('unet').build(width=4) is not None)
print(inpaint_distill.__file__)
print(adapters.__file__)
"""


def test_a_checkout_imports_its_adapters_without_installation():
    names, built, package, adapters = python(IMPORTS, ROOT, cwd=ROOT).splitlines()
    assert {"contextual-attention", "gated-conv", "lama", "partial-conv", "unet"} <= set(ast.literal_eval(names))
    assert built == "True"
    assert Path(package).parent == ROOT / "inpaint_distill"
    assert Path(adapters).parent == ROOT / "adapters"


def test_pytest_started_in_the_repository_root_finds_the_adapters(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text("def test_it():\n    import inpaint_distill.adapters\n", encoding="utf-8")
    script = f"""
import pytest
sys.path.insert(0, '')
raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null', '--rootdir', {str(tmp_path)!r},
                              {str(test)!r}]))
"""
    python(script, cwd=ROOT)


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["timm", "torchmetrics", "matplotlib", "rich", "PIL", "torchvision", "accelerate", "scipy", "pandas"]
    script = f"""
import torch
before = set(sys.modules)
import inpaint_distill
print([name for name in {heavy!r} if name in sys.modules and name not in before])
print('inpaint_distill.adapters' in sys.modules)
"""
    loaded, adapters = python(script, ROOT).splitlines()
    assert loaded == "[]"
    assert adapters == "False"


def test_every_module_of_the_package_can_be_imported_alone():
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "inpaint_distill").rglob("*.py")
        if file.name != "__init__.py" and "training" not in file.parts  # which import much, and are imported last
    ]
    script = f"""
import importlib
first = set(sys.modules)
for name in {names!r}:
    for loaded in [each for each in sys.modules if each.startswith('inpaint_distill')]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len({names!r}))
"""
    assert int(python(script, ROOT)) == len(names)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("no setuptools here to build a wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that no build folder is left in the repository
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for top in ("inpaint_distill", "adapters"):
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_every_source_file_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {file.relative_to(ROOT).as_posix() for file in (ROOT / "inpaint_distill").rglob("*.py")}
    wanted |= {f"inpaint_distill/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "adapters").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == wanted | {"inpaint_distill/py.typed"}


def test_the_unpacked_wheel_imports_with_its_adapters(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    _, built, package, adapters = python(IMPORTS, tmp_path).splitlines()
    assert built == "True"
    assert Path(package).parent == tmp_path / "inpaint_distill"
    assert Path(adapters).parent == tmp_path / "inpaint_distill" / "adapters"


def test_the_wheel_names_its_command_licence_and_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    read = {
        name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name
    }
    assert "inpaint-distill = inpaint_distill.cli:main" in read["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in read["METADATA"]
    assert {"Provides-Extra: train", "Provides-Extra: test"} <= set(read["METADATA"].splitlines())
    assert "Apache License" in read["LICENSE"]
