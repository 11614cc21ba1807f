import json
from pathlib import Path

import pytest

from patch_compile.cli.arguments import config_reader, config_text, split_lists
from patch_compile.errors import RecipeError
from patch_compile.recipe import CompileRecipe
from tests.support import said

VERBS = ["build", "plan"]


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        (["--sm", "86,89"], ["--sm", "86", "--sm", "89"]),
        (["--sm=86,89"], ["--sm", "86", "--sm", "89"]),
        (["--batch", "1,2,4"], ["--batch", "1", "2", "4"]),
        (["--batch", "1", "2", "4"], ["--batch", "1", "2", "4"]),
        (["--ignore", "a,,b"], ["--ignore", "a", "--ignore", "b"]),
        (["--ignore", "re:x{1,2}"], ["--ignore", "re:x{1,2}"]),
        (["--ignore=a,re:x{1,2}"], ["--ignore", "a", "--ignore", "re:x{1,2}"]),
        (["--ignore", "core:a,b"], ["--ignore", "core:a", "--ignore", "b"]),
        (["--tiles", "a,b", "m,n.onnx"], ["--tiles", "a,b", "m,n.onnx"]),
        (["m.onnx", "--ignore"], ["m.onnx", "--ignore"]),
    ],
)
def test_lists_are_spread_and_nothing_else_is(given: list[str], spread: list[str]) -> None:
    assert split_lists(given) == spread


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'tiles = "m"\n[build]\nsm = [86, 89]'),
        ("c.yaml", "tiles: m\nbuild:\n  sm: [86, 89]"),
        ("c.yml", "{tiles: m, build: {sm: [86, 89]}}"),
        ("c.json", '{"tiles": "m", "build": {"sm": [86, 89]}}'),
    ],
)
def test_every_kind_of_file_is_read_alike(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert config_reader(tmp_path / name, VERBS).data == {
        "tiles": "m",
        "build": {"sm": [86, 89]},
    }


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("c.toml", b"tiles = ", "cannot be read"),
        ("c.json", b"{", "cannot be read"),
        ("c.json", b"[" * 100_000, "cannot be read"),
        ("c.yaml", b"a: b: c", "cannot be read"),
        ("c.yaml", b"\xff\xfe\xfd", "cannot be read"),
        ("c.yaml", b"", "is no table"),
        ("c.json", b"[1]", "is no table"),
        ("c.ini", b"tiles = m", "is no file of kind .json, .toml, .yaml, .yml"),
        ("c.toml", b"[biuld]\nsm = [86]", "has a table 'biuld', which is no verb; expected"),
        ("c.toml", b'log-level = "debug"', "sets ['log_level']"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        config_reader(tmp_path / name, VERBS)
    assert said(caught).startswith(f"config '{tmp_path / name}' | ")
    assert complaint in said(caught)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        config_reader(tmp_path / "none.toml", VERBS)
    assert "none.toml" in said(caught)


def test_options_are_saved_under_their_verb() -> None:
    recipe = CompileRecipe(ignore=("a", "re:b,c"))
    options = {"tiles": "m.json", "output": None, "recipe": recipe, "json_": True}
    saved = json.loads(config_text(("plan",), options))
    assert saved["plan"] == {
        "tiles": "m.json",
        "lowering": "auto",
        "restore": False,
        "min_gain": 0.05,
        "tile": "128x128",
        "ignore": ["a", "re:b,c"],
        "check_digests": True,
        "json": True,
        "tokens": ["16:0.9", "2048:0.1"],
        "regroup": False,
    }
