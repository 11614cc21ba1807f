"""A quantised model is still the masked one, and what was 2:4 still is, byte for byte."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from patch_compile import quantization
from patch_compile.compiler import compile_model
from patch_compile.errors import InternalError, ModelError, RecipeError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.quantized import quantized_pieces
from patch_compile.quantization import quantize_model
from patch_compile.recipe import CastType, CompileRecipe, QuantizeRecipe, VerifyRecipe
from patch_compile.verification import verify
from tests.cli.conftest import Cli, cli  # noqa: F401  # a fixture
from tests.support import said
from tests.words import words

Kind = Literal["int8", "fp8"]
INT8 = QuantizeRecipe(quantize="int8", calibration_tokens=64, calibration_window=16)


@dataclass(frozen=True)
class Job:
    """A model of words: embedding, a in bands, Relu, b wholly 2:4, and what goes with it."""

    model: Path
    masks: Path
    text: Path
    out: Path

    def compiled(self, recipe: CompileRecipe | None = None) -> Path:
        return compile_model(self.model, self.masks, recipe or CompileRecipe()).save(self.out)

    def quantized(self, kind: Kind = "int8") -> Path:
        recipe = QuantizeRecipe(kind, INT8.calibration_tokens, INT8.calibration_window)
        path = self.compiled()
        quantize_model(path, recipe, self.text, tokenizer=self.tokenizer)
        return path

    @property
    def tokenizer(self) -> Path:
        return self.model.with_name("tokenizer.json")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    words(tmp_path)
    return Job(
        tmp_path / "model.onnx",
        tmp_path / "masks.json",
        tmp_path / "text.txt",
        tmp_path / "out",
    )


@pytest.mark.parametrize(("kind", "type_"), [("int8", "INT8"), ("fp8", "FLOAT8E4M3FN")])
def test_pieces_stay_24_and_write_what_they_should(
    job: Job, capsys: pytest.CaptureFixture[str], kind: Kind, type_: str
) -> None:
    path = job.quantized(kind)
    # The quantiser prints; stdout is for results.
    assert capsys.readouterr().out == ""
    model = load_model(path)
    found = quantized_pieces(model)
    assert sorted(piece.role for piece in found) == ["dense", "sparse24", "sparse24"]
    assert all(piece.holds == (piece.role == "sparse24") for piece in found)
    assert all(piece.quantized_output for piece in found if "logits" not in piece.name)
    types = {
        value.const_value.dtype.name
        for value in model.graph.initializers.values()
        if value.const_value is not None and len(value.const_value.shape) == 2
    }
    assert type_ in types


def test_a_file_that_the_quantiser_would_write_beside_the_model_stays(job: Job) -> None:
    path = job.compiled()
    mine = path.with_name("compiled-inferred.onnx")
    mine.write_bytes(b"mine")
    before = {file.name for file in job.out.iterdir()}
    quantize_model(path, INT8, job.text, tokenizer=job.tokenizer)
    assert mine.read_bytes() == b"mine"
    assert {file.name for file in job.out.iterdir()} == before


@pytest.mark.parametrize(("kind", "rtol"), [("int8", 0.03), ("fp8", 0.15)])
def test_the_quantised_model_is_the_masked_one_to_its_precision(
    job: Job, kind: Kind, rtol: float
) -> None:
    found = verify(
        job.model,
        job.quantized(kind),
        job.masks,
        VerifyRecipe(rtol=rtol, atol=10.0, tokens=64, window=16),
        data=job.text,
    )
    assert found.passed, found.to_json()
    # Not the float model either: it was quantised.
    assert found.comparison.outputs[0].relative > 1e-4


def test_the_report_tells_what_became_of_the_products(job: Job) -> None:
    path = job.compiled()
    before = json.loads((job.out / "report.json").read_text())
    quantize_model(path, INT8, job.text, tokenizer=job.tokenizer)
    after = json.loads((job.out / "report.json").read_text())
    told = after.pop("quantized")
    assert after.pop("versions").pop("onnxruntime") == onnxruntime.__version__
    del before["versions"]
    assert after == before
    assert told["type"] == "int8"
    assert (told["products"], told["pieces"], told["eligible"]) == (3, 3, 2)
    assert told["windows"] == 4


def test_a_weight_that_is_not_symmetric_is_no_piece(job: Job) -> None:
    model = load_model(job.quantized())
    for value in list(model.graph.initializers.values()):
        if (value.name or "").endswith("weight_zero_point") and value.const_value is not None:
            shifted = np.asarray(value.const_value.numpy()) + np.int8(1)
            value.const_value = ir.tensor(shifted, name=value.name)
    assert quantized_pieces(model) == ()


def test_a_zero_that_is_lost_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load_model

    def spoiled(path: Path) -> ir.Model:
        model = real(path)
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if (
                tensor is not None
                and tensor.dtype == ir.DataType.INT8
                and len(tensor.shape) == 2
            ):
                array = np.asarray(tensor.numpy()).copy()
                array[array == 0] = 1
                value.const_value = ir.tensor(array, name=value.name)
        return model

    path = job.compiled()
    monkeypatch.setattr(quantization, "load_model", spoiled)
    with pytest.raises(InternalError, match=r"was 2:4 and is not"):
        quantize_model(path, INT8, job.text, tokenizer=job.tokenizer)
    # Nothing was replaced.
    assert "quantized" not in json.loads((job.out / "report.json").read_text())


def test_a_float16_model_becomes_int8_too(job: Job) -> None:
    path = job.compiled(CompileRecipe(dtype="fp16"))
    found = quantize_model(path, INT8, job.text, tokenizer=job.tokenizer)
    assert (found.pieces, found.eligible) == (3, 2)
    tolerant = VerifyRecipe(rtol=0.03, atol=10.0, tokens=64, window=16)
    assert verify(job.model, path, job.masks, tolerant, data=job.text).passed


@pytest.mark.parametrize(
    ("dtype", "kind", "named"),
    [("fp16", "fp8", "FLOAT16"), ("bf16", "int8", "BFLOAT16"), ("bf16", "fp8", "BFLOAT16")],
)
def test_types_that_cannot_be_calibrated_are_refused(
    job: Job, dtype: CastType, kind: Kind, named: str
) -> None:
    path = job.compiled(CompileRecipe(dtype=dtype))
    recipe = QuantizeRecipe(kind, 64, 16)
    with pytest.raises(ModelError, match=rf"has {named} weights; {kind} is") as caught:
        quantize_model(path, recipe, job.text, tokenizer=job.tokenizer)
    said(caught)


def test_a_second_time_is_refused(job: Job) -> None:
    path = job.quantized()
    with pytest.raises(ModelError, match=r"no product over a float weight") as caught:
        quantize_model(path, INT8, job.text, tokenizer=job.tokenizer)
    said(caught)


def test_a_recipe_without_a_type_is_refused(job: Job) -> None:
    with pytest.raises(RecipeError, match=r"choose int8 or fp8"):
        quantize_model(job.compiled(), QuantizeRecipe(), job.text)


def test_a_text_that_is_too_short_is_refused(job: Job) -> None:
    job.text.write_text("w1 w2")
    with pytest.raises(RecipeError) as caught:
        quantize_model(job.compiled(), INT8, job.text, tokenizer=job.tokenizer)
    said(caught)


def test_the_main_job_compiles_casts_and_quantises(job: Job, cli: Cli) -> None:  # noqa: F811
    options = ["--tiles", job.masks, "-o", job.out, "--data", job.text]
    options += ["--calibration-tokens", "64", "--calibration-window", "16"]
    ran = cli(job.model, *options, "--quantize", "int8")
    assert ran.code == 0, ran.err
    assert "int8: 3 products, 3 of them pieces; 2:4 in their stored bytes 2" in ran.out
    assert len(quantized_pieces(load_model(job.out / "compiled.onnx"))) == 3


def test_the_main_job_wants_text_before_it_starts(job: Job, cli: Cli) -> None:  # noqa: F811
    ran = cli(job.model, "--tiles", job.masks, "-o", job.out, "--quantize", "fp8")
    assert (ran.code, ran.out) == (1, "")
    assert "needs text to calibrate on; give it by --data" in ran.err
    assert not job.out.exists()


@pytest.fixture
def outlier(job: Job) -> Path:
    """The job compiled, with a feature of one word so large that int8 ruins the product a."""
    model = onnx.load(job.model)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "table":
            array[1, 0] = 1e4
        if tensor.name == "a.weight":
            # Nothing of it reaches what comes after.
            array[0] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, job.model)
    return job.compiled(CompileRecipe(check_digests=False))


def _recipe(**changes: Any) -> QuantizeRecipe:
    return replace(INT8, **changes)


def test_products_that_outliers_ruin_keep_their_type(job: Job, outlier: Path) -> None:
    found = quantize_model(outlier, INT8, job.text, tokenizer=job.tokenizer)
    # Its dense and its 2:4 piece, each told by itself.
    pieces = {"a.weight (a/patch/dense_0)", "a.weight (a/patch/sparse24_1)"}
    assert set(found.kept) == pieces
    for name in pieces:
        assert "lose 100% of a typical token of its input" in found.kept[name]
        assert found.sensitivity[name]["input"]["peak"] == pytest.approx(1e4)
    assert found.products == 1
    types = {
        piece.name for piece in quantized_pieces(load_model(outlier)) if "b" in piece.name
    }
    assert len(types) == 1
    tolerant = VerifyRecipe(tokens=64, window=16)
    assert verify(job.model, outlier, job.masks, tolerant, data=job.text).passed


def test_without_that_the_model_is_ruined_and_verify_says_so(job: Job, outlier: Path) -> None:
    recipe = _recipe(quantize_error=1.0)
    found = quantize_model(outlier, recipe, job.text, tokenizer=job.tokenizer)
    assert found.kept == {}
    checked = verify(
        job.model, outlier, job.masks, VerifyRecipe(tokens=64, window=16), data=job.text
    )
    assert not checked.passed
    assert checked.comparison.outputs[0].relative > 0.5


def test_fp8_needs_to_keep_nothing_there(job: Job, outlier: Path) -> None:
    recipe = _recipe(quantize="fp8")
    assert quantize_model(outlier, recipe, job.text, tokenizer=job.tokenizer).kept == {}
    checked = verify(
        job.model, outlier, job.masks, VerifyRecipe(tokens=64, window=16), data=job.text
    )
    # fp8's own scales, by the standard deviation, would have clipped the outlier and more.
    assert checked.passed, checked.to_json()


def test_ignored_weights_keep_their_type(job: Job) -> None:
    path = job.compiled()
    recipe = _recipe(quantize_ignore=("re:^a\\.",))
    found = quantize_model(path, recipe, job.text, tokenizer=job.tokenizer)
    assert set(found.kept.values()) == {"left out by quantize-ignore"}
    assert {name.partition(" ")[0] for name in found.kept} == {"a.weight"}
    assert all("b.weight" not in name for name in found.kept)


def test_a_recipe_that_leaves_nothing_is_refused(job: Job) -> None:
    path = job.compiled()
    before = path.read_bytes()
    recipe = _recipe(quantize_ignore=("*",))
    with pytest.raises(RecipeError, match=r"leave none of 3 products") as caught:
        quantize_model(path, recipe, job.text, tokenizer=job.tokenizer)
    said(caught)
    assert path.read_bytes() == before


def test_percentiles_clip_and_extremes_do_not(job: Job) -> None:
    clipping = _recipe(calibration="percentile", calibration_percentile=90.0)
    first, second = (_input_scale(job, recipe) for recipe in (INT8, clipping))
    assert second < first


def test_entropy_calibrates_too(job: Job) -> None:
    assert 0.0 < _input_scale(job, _recipe(calibration="entropy")) <= _input_scale(job, INT8)


def _input_scale(job: Job, recipe: QuantizeRecipe) -> float:
    path = job.compiled()
    quantize_model(path, recipe, job.text, tokenizer=job.tokenizer)
    tensors = {t.name: t for t in onnx.load(path).graph.initializer}
    return float(numpy_helper.to_array(tensors["x_scale"]))


def test_fp8_takes_one_calibration_alone() -> None:
    with pytest.raises(RecipeError, match=r"calibration \| is 'entropy', and fp8"):
        QuantizeRecipe("fp8", calibration="entropy")


def test_verify_says_what_it_compared(job: Job) -> None:
    recipe = VerifyRecipe(tokens=64, window=16)
    found = verify(job.model, job.quantized(), job.masks, recipe, data=job.text)
    assert found.compared == "compiled, quantised to int8, against masked, not quantised"
    assert found.comparison.outputs[0].rtol == 0.25
    path = job.compiled(CompileRecipe(dtype="fp16"))
    cast = verify(job.model, path, job.masks, replace(recipe, rtol=0.5), data=job.text)
    assert cast.compared == "compiled, cast to fp16, against masked, not cast"
    assert (cast.comparison.outputs[0].rtol, cast.comparison.outputs[0].atol) == (0.5, 0.5)
    report = json.loads(path.with_name("report.json").read_text("utf-8"))
    assert report["verification"]["compared"] == cast.compared
    assert report["versions"]["onnxruntime"] == onnxruntime.__version__
