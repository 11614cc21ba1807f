"""What is published: its files, and that it runs away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "patch_compile",
    "patch_compile/bench",
    "patch_compile/cli",
    "patch_compile/evaluation",
    "patch_compile/io",
    "patch_compile/learn",
    "patch_compile/learn/training",
    "patch_compile/page",
    "patch_compile/passes",
    "patch_compile/recipe",
    "patch_compile/runtimes",
    "patch_compile/targets",
    "patch_compile/tiles",
)
TEMPLATES = {f"patch_compile/page/templates/report.{kind}" for kind in ("css", "html", "js")}
TABLES = sorted((ROOT / "patch_compile" / "targets" / "tables").glob("*.json"))
DATA = {
    "patch_compile/py.typed",
    "patch_compile/io/masks.schema.json",
    "patch_compile/runtimes/bundle_run.sh",
    *(f"patch_compile/targets/tables/{table.name}" for table in TABLES),
} | TEMPLATES
NOT_SHIPPED = {"tests", "benchmarks", "scripts"}


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _wheel(source: Path, folder: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", folder)
    _run(*pip, "wheel", *options, source, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, its links as links: a build leaves files in its source."""
    folder = tmp_path_factory.mktemp("source") / "patch-compile"
    skipped = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "demo-out"
    )
    shutil.copytree(ROOT, folder, symlinks=True, ignore=skipped)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = (
        "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    )
    _run(sys.executable, "-c", build, folder, cwd=source)
    (built,) = folder.glob("*.tar.gz")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    wanted = {
        f"{package}/{path.name}"
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
    }
    assert {"patch_compile/passes/pipeline.py", "patch_compile/runtimes/engines.py"} <= wanted
    shipped = {name for name in _names(wheel) if ".dist-info/" not in name}
    assert shipped == wanted | DATA


def test_the_wheel_carries_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            name.rpartition("/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text("utf-8")
    assert "patch-compile = patch_compile.__main__:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert texts["top_level.txt"].split() == ["patch_compile"]


def test_the_source_archive_builds_the_same_wheel(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    # Not extractall: its `filter` came with 3.11.4, and 3.14 warns without one.
    _run("tar", "-xzf", sdist, cwd=tmp_path)
    assert not {name.partition("/")[0] for name in members} & NOT_SHIPPED
    assert {"passes/pipeline.py", "runtimes/engines.py", "pyproject.toml"} <= members
    (unpacked,) = tmp_path.iterdir()
    again = _wheel(unpacked, tmp_path / "wheel")
    assert _names(again) == _names(wheel)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
    options = ("--no-deps", "--no-index", "--target", target)
    _run(*pip, "install", *options, wheel, cwd=target)
    return target


def _run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """Runs Python with the wheel and its dependencies on the path, and nothing else.

    `-S` skips the .pth files, so that no editable installation leads to the checkout.
    """
    paths = (str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    search = os.pathsep.join(dict.fromkeys(paths))
    return _run(sys.executable, "-S", *arguments, cwd=cwd, PYTHONPATH=search)


def test_the_wheel_runs_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    said = _run_installed(installed, tmp_path, "-m", "patch_compile", "--help")
    assert said.startswith("Usage: patch-compile")
    version = _run_installed(installed, tmp_path, "-m", "patch_compile", "--version").strip()
    assert (installed / f"patch_compile-{version}.dist-info").is_dir()


def test_the_wheel_imports_its_own_passes_and_runtimes(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import patch_compile.passes.pipeline as p, patch_compile.runtimes.engines as r;"
        "from patch_compile.io.masks_file import schema;"
        "print(p.__file__); print(r.__file__); print(schema()['title'])"
    )
    said = _run_installed(installed, tmp_path, "-c", code).splitlines()
    assert said[:2] == [
        str(installed / "patch_compile" / "passes" / "pipeline.py"),
        str(installed / "patch_compile" / "runtimes" / "engines.py"),
    ]
    assert said[2] == "patch-compile masks, version 1"
