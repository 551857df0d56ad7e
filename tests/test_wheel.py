"""Wheel and source distribution, built from the tree and installed outside it, are the whole package."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = """import sys
from setuptools import build_meta
getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2])"""
# Imports every module, and says where the package lies.
IMPORT = """import importlib, pkgutil, nanogrpo
names = [m.name for m in pkgutil.walk_packages(nanogrpo.__path__, "nanogrpo.") if "__main__" not in m.name]
for name in names: importlib.import_module(name)
print(nanogrpo.__file__, len(names))"""


def run(*command, where, **options):
    return subprocess.run(list(map(str, command)), cwd=where, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with both distributions, built in a copy of the tree: builds leave things behind."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "nanogrpo", tree / "nanogrpo", ignore=shutil.ignore_patterns("__pycache__"))
    backend = folder / "backend"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", backend]
    done = run(*pip, "setuptools>=77", where=folder)
    if done.returncode:
        pytest.skip(f"package: the build backend setuptools>=77 cannot be had: {done.stderr[-200:]}")
    for kind in ("wheel", "sdist"):
        done = run(sys.executable, "-c", BUILD, kind, folder, where=tree, env={"PYTHONPATH": str(backend)})
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def of_the_package(names) -> set[str]:
    return {name for name in names if name.startswith("nanogrpo/") and not name.endswith("/")}


@pytest.mark.slow
def test_both_hold_every_file_of_the_package(built):
    tree = (ROOT / "nanogrpo").rglob("*")
    wanted = {p.relative_to(ROOT).as_posix() for p in tree if p.is_file() and "__pycache__" not in p.parts}
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert of_the_package(zipfile.ZipFile(wheel).namelist()) == wanted
    with tarfile.open(sdist) as archive:
        inside = (member.name.split("/", 1)[-1] for member in archive.getmembers() if member.isfile())
        assert of_the_package(inside) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installed_elsewhere_it_imports_every_module_and_runs_the_demo(built, kind, tmp_path):
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", "env", where=tmp_path)
    (distribution,) = built.glob(kind)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    done = run(*pip, distribution, where=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    # All other packages are those of this environment; a .pth file does not bring its editable installs.
    variables = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    site = Path(sysconfig.get_path("purelib", vars=variables))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(python, "-c", IMPORT, where=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    place, count = done.stdout.split()
    assert Path(place).is_relative_to(site) and int(count) > 30
    done = run(python, "-m", "nanogrpo", "demo", "--steps", "2", where=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("runs/**/*.csv")), done.stdout
