"""What the pages of the site tell a reader to type works.

The tutorial runs from nothing but a checkpoint and a text, both tiny and random here; the
how-to pages run in what it leaves behind.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import patch_compile
from patch_compile.cli.main import app, run
from patch_compile.io.load_masks import load_masks
from patch_compile.learn.model import save_checkpoint
from scripts.docs.hook import rendered
from tests.documents import blocks, code_of, commands, run_command, skipped
from tests.learn.tiny import tiny_model, write_text

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
HOW_TO = [page for page in PAGES if page.startswith("how-to/")]
# Written from code, whose own words tests hold elsewhere.
GENERATED = ("reference/cli.md", "reference/recipes.md", "reference/python.md")


def text_of(page: str) -> str:
    return rendered((DOCS / page).read_text("utf-8"))


@contextmanager
def there(folder: Path) -> Iterator[None]:
    """The working directory, for a while; `contextlib.chdir` came with Python 3.11."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def follow(page: str, folder: Path) -> None:
    """Runs a page's commands in order, and then its Python blocks in one process."""
    text = text_of(page)
    with there(folder):
        for command in commands(text):
            program, *arguments = shlex.split(command)
            if not skipped(command):
                # In this process: torch need not be loaded for each of them.
                assert program == "patch-compile", command
                assert run(arguments) == 0, command
    examples = "\n".join(blocks(text, "python"))
    if examples:
        run_command([sys.executable, "-c", examples], folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tutorial was followed to its end."""
    folder = tmp_path_factory.mktemp("tutorial")
    save_checkpoint(tiny_model(layers=2), folder / "SmolLM2-135M")
    write_text(folder / "text.txt", 4096)
    follow("tutorial.md", folder)
    masks = load_masks(folder / "masks.json").weights
    arrays = {name: np.packbits(mask.keep().ravel()) for name, mask in masks.items()}
    shapes = {f"{name}.__shape__": np.array(mask.shape) for name, mask in masks.items()}
    np.savez_compressed(folder / "mask.npz", **arrays, **shapes)  # type: ignore[arg-type]
    return folder


def test_the_tutorial_ends_with_an_engine_and_a_bundle(finished: Path) -> None:
    assert (finished / "out" / "compiled.sm86.engine").stat().st_size > 0
    assert (finished / "out.tar").stat().st_size > 0
    assert (finished / "out" / "report.html").is_file()


@pytest.mark.parametrize("page", HOW_TO)
def test_every_command_and_example_runs(page: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "work")
    follow(page, tmp_path / "work")


def test_how_to_pages_have_commands() -> None:
    assert len(HOW_TO) >= 8
    assert [page for page in HOW_TO if not commands(text_of(page))] == []


def test_the_sections_of_the_report_are_those_of_its_page() -> None:
    page = Path(patch_compile.__file__).parent / "page" / "templates" / "report.html"
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text("utf-8"))
    told = re.findall(r"^- \*\*(.+?)\*\*", text_of("how-to/read-the-report.md"), re.MULTILINE)
    assert told == headings


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_exists(page: str) -> None:
    verbs = re.findall(
        r"\bpatch-compile ([a-z]+)(?=\s|$)", code_of(text_of(page)), re.MULTILINE
    )
    assert set(verbs) - set(app) == set()


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [[name] for name in app if not name.startswith("-")]
    assert {run([*verb, "--help"]) for verb in ([], *verbs)} == {0}
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    for page in set(PAGES) - set(GENERATED):
        # Those of trtexec and of pip are theirs.
        lines = [line for line in code_of(text_of(page)).splitlines() if not skipped(line)]
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
        assert named - known == set(), page


def test_the_first_example_prints_what_the_page_says(tmp_path: Path) -> None:
    text = text_of("index.md")
    (example,), (printed,) = blocks(text, "python"), blocks(text, "text")
    assert run_command([sys.executable, "-c", example], tmp_path) == printed
