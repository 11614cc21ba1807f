"""`eval` prints what was found and how it was taken."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclopts import App, Parameter

from patch_compile.cli.eval_verb import eval_
from patch_compile.errors import RecipeError
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.model import load_model, save_checkpoint
from patch_compile.recipe import LearnRecipe
from tests.learn.tiny import one_shot, tiny_model, write_text

Ran = Callable[..., str]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    app = App(default_parameter=Parameter(negative_iterable=()), result_action="return_value")
    app.command(eval_)

    def ran_(*arguments: str | Path) -> str:
        app(["eval", *map(str, arguments)], exit_on_error=False, print_error=False)
        return capsys.readouterr().out

    return ran_


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its masks and a text of 100 tokens."""
    home = tmp_path_factory.mktemp("home")
    save_checkpoint(tiny_model("llama", layers=1), home / "hf")
    recipe = LearnRecipe(method="magnitude", select="error", tile="weight", sparsity=(0.5,))
    masks = one_shot(load_model(str(home / "hf")), None, recipe)
    save_masks(masks, home / "masks.json")
    write_text(home / "text.txt", 100)
    return home


def test_the_protocol_stands_beside_the_perplexity(ran: Ran, home: Path) -> None:
    text = ["--data", home / "text.txt", "--window", "32"]
    out = ran(home / "hf", *text, "--stride", "16", "--masks", home / "masks.json")
    sparsity, line = out.splitlines()
    assert sparsity == "masks: sparsity 50.0000%"
    assert re.fullmatch(
        r"perplexity \d+\.\d{4}  \(95 predictions: 5 windows of 32 tokens, stride 16; the "
        r"last 4 tokens fill no window and are dropped\)",
        line,
    )


def test_json_holds_the_same(ran: Ran, home: Path) -> None:
    text = ["--data", home / "text.txt", "--window", "32", "--tokens", "64"]
    found = json.loads(ran(home / "hf", *text, "--json"))
    assert found["model"] == str(home / "hf")
    assert (found["sparsity"], found["tasks"], found["unapplied"]) == (None, {}, {})
    value = found["perplexity"].pop("value")
    assert found["perplexity"] == {
        "predictions": 62,
        "windows": 2,
        "window": 32,
        "stride": 32,
        "dropped": 0,
    }
    assert f"perplexity {value:.4f} " in ran(home / "hf", *text)


def test_nothing_to_evaluate_is_an_error(ran: Ran, home: Path) -> None:
    with pytest.raises(RecipeError, match="give --data TEXT or --tasks NAMES"):
        ran(home / "hf")
