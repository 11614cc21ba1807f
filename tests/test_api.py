"""From a checkpoint to a verified model, through Python."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import patch_compile as pc
from patch_compile.errors import MaskError, ModelError, RecipeError
from patch_compile.learn.model import save_checkpoint
from patch_compile.runtimes.comparison import Comparison
from patch_compile.tiles.masks import Masks
from patch_compile.verification import Verification
from tests.learn.tiny import tiny_model, write_text
from tests.support import said, same_mask

# Free tiles: a cover computes some 2:4 tiles in dense pieces, so that `restore` matters.
RECIPE = pc.LearnRecipe(tile="16x16", sparsity=(0.35,), samples=4, window=32)
OTHER = pc.LearnRecipe(tile="band:16", sparsity=(0.25,), samples=4, window=32)
VERIFY = pc.VerifyRecipe(tokens=512, window=64)

# Sums are cut in two where columns are: float32 rounding, far below what masking does.
SAME = 1e-3


class Case:
    """A checkpoint, its text, its masks and its ONNX model."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = folder / "llama"
        self.model = folder / "model.onnx"
        self.masks = folder / "masks.json"
        self.calibration = write_text(folder / "calibration.txt", 256, seed=1)
        self.held_out = write_text(folder / "held-out.txt", 512, seed=2)
        _save_loud_model(self.checkpoint)
        self.learned = pc.learn_masks(str(self.checkpoint), self.calibration, RECIPE)
        pc.save_masks(self.learned, self.masks)
        pc.export_onnx(str(self.checkpoint), self.model, masks=self.learned)

    def compile(self, folder: Path, recipe: pc.CompileRecipe | None = None) -> Path:
        return pc.compile_model(self.model, self.masks, recipe).save(folder)

    def verify(self, compiled: Path, masks: Path | Masks | None = None) -> Verification:
        given = self.masks if masks is None else masks
        return pc.verify(self.model, compiled, given, VERIFY, data=self.held_out)


def _save_loud_model(folder: Path) -> None:
    """A model with larger weights than at its start, so that masks change what it says."""
    loaded = tiny_model()
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.mul_(6.0)
    save_checkpoint(loaded, folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize("restore", [False, True])
def test_the_whole_job_ends_in_a_model_that_verifies(
    case: Case, tmp_path: Path, restore: bool
) -> None:
    compiled = case.compile(tmp_path, pc.CompileRecipe(restore=restore))
    found = case.verify(compiled)
    assert found.passed, found.to_json()
    assert found.tokens == 512 // 64 * 63
    dense, masked = found.perplexity["dense"], found.perplexity["masked"]
    assert found.perplexity["compiled"] == pytest.approx(masked, rel=SAME)
    assert abs(masked - dense) > 10 * SAME * dense


def test_restoring_gives_weights_back(case: Case, tmp_path: Path) -> None:
    exact = case.compile(tmp_path / "exact")
    restored = case.compile(tmp_path / "restored", pc.CompileRecipe(restore=True))
    before, after = (case.verify(path).perplexity for path in (exact, restored))
    assert before["dense"] == after["dense"]
    assert abs(before["masked"] - after["masked"]) > 10 * SAME * before["masked"]


def test_a_model_compiled_with_weights_ignored_verifies(case: Case, tmp_path: Path) -> None:
    recipe = pc.CompileRecipe(ignore=("*.down_proj.*", r"re:\.0\.self_attn"))
    compiled = case.compile(tmp_path / "some", recipe)
    report = json.loads((compiled.parent / "report.json").read_text("utf-8"))
    # Two layers of seven linears, without two down_proj and the first layer's attention.
    assert len(report["weights"]) == 14 - 2 - 4
    found = case.verify(compiled)
    assert found.passed
    everything = case.verify(case.compile(tmp_path / "all"))
    assert found.perplexity["masked"] != everything.perplexity["masked"]


def test_masks_of_another_recipe_do_not_verify(case: Case, tmp_path: Path) -> None:
    compiled = case.compile(tmp_path)
    other = pc.learn_masks(str(case.checkpoint), case.calibration, OTHER)
    with pytest.raises(MaskError, match=r"are not those that '.*' was compiled with"):
        case.verify(compiled, other)


def test_learning_together_equals_learning_apart(case: Case) -> None:
    together = pc.learn_masks_for(str(case.checkpoint), case.calibration, [OTHER, RECIPE])
    apart = pc.learn_masks(str(case.checkpoint), case.calibration, OTHER)
    for ours, theirs in ((together[0], apart), (together[1], case.learned)):
        assert list(ours.weights) == list(theirs.weights)
        for name in ours.weights:
            same_mask(ours.weights[name], theirs.weights[name])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"method": "topk-ste"}, "'topk-ste' learns"),
        ({"method": "leap", "tile": "64x64"}, "'leap' learns"),
        ({"method": "sparsegpt", "update": True}, "--update moves weights"),
    ],
)
def test_what_one_calibration_cannot_make_is_not_made(
    case: Case, options: dict[str, Any], problem: str
) -> None:
    recipes = [RECIPE, pc.LearnRecipe(**options)]
    with pytest.raises(RecipeError, match=rf"^method \| {problem}.* use learn_candidates"):
        pc.learn_masks_for(str(case.checkpoint), case.calibration, recipes)


def test_saved_masks_are_the_masks(case: Case) -> None:
    loaded = pc.load_masks(case.masks)
    assert loaded.sparsity == case.learned.sparsity
    for name, mask in case.learned.weights.items():
        same_mask(loaded.weights[name], mask)


def test_without_text_only_outputs_are_compared(case: Case, tmp_path: Path) -> None:
    found = pc.verify(case.model, case.compile(tmp_path), case.masks)
    assert found.passed
    assert (found.perplexity, found.tokens) == ({}, 0)


def test_progress_tells_what_is_done(case: Case, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        steps.append((done, total, what))

    compiled = case.compile(tmp_path)
    pc.verify(case.model, compiled, case.masks, VERIFY, data=case.held_out, progress=progress)
    finished = {what for done, total, what in steps if done == total}
    wanted = {f"perplexity, {what}" for what in ("dense", "masked", "compiled")}
    assert wanted <= finished
    assert all(0 <= done <= total for done, total, _ in steps)


def test_masks_of_another_checkpoint_are_refused(case: Case, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_checkpoint(tiny_model(), other)
    recipe = pc.LearnRecipe(method="magnitude", select="error", tile="weight")
    masks = pc.learn_masks(str(other), recipe=recipe)
    with pytest.raises(MaskError) as caught:
        pc.compile_model(case.model, masks).save(tmp_path / "out")
    assert "differs from the weight its mask was made for" in said(caught)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"recipe": 3}'])
def test_a_folder_without_its_report_cannot_be_verified(
    case: Case, tmp_path: Path, text: str | None
) -> None:
    compiled = case.compile(tmp_path)
    report = tmp_path / "report.json"
    report.unlink()
    if text is not None:
        report.write_text(text, "utf-8")
    with pytest.raises(ModelError) as caught:
        case.verify(compiled)
    assert "has no readable report.json beside it" in said(caught)


def test_a_restored_model_cannot_be_verified_without_its_plan(
    case: Case, tmp_path: Path
) -> None:
    compiled = case.compile(tmp_path, pc.CompileRecipe(restore=True))
    (tmp_path / "plan.json").write_text('{"weights": [{}]}', "utf-8")
    with pytest.raises(ModelError) as caught:
        case.verify(compiled)
    assert "has no readable plan.json beside it" in said(caught)


def test_what_was_found_is_valid_json_whatever_the_numbers() -> None:
    scores = {"dense": 2.5, "masked": math.inf, "compiled": math.nan}
    found = Verification(Comparison(()), scores, 7, {}).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "passed": True,
        "compared": "compiled against masked",
        "outputs": [],
        "perplexity": {"dense": 2.5, "masked": "inf", "compiled": "nan"},
        "tokens": 7,
        "unapplied": {},
    }
