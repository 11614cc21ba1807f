"""An engine is checked against its side file before it is used."""

from dataclasses import replace
from pathlib import Path

import pytest

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engine_file import check_engine, write_facts
from patch_compile.runtimes.evidence import Evidence, Sparsity
from patch_compile.runtimes.gpu import Gpu, read_gpus, read_process_bytes

A6000 = Gpu("NVIDIA RTX A6000", 86, "550.54", 49140)
A100 = Gpu("NVIDIA A100", 80, "550.54", 81920)
RTX3090 = Gpu("NVIDIA GeForce RTX 3090", 86, "550.54", 24576)
RECIPE = BuildRecipe(engine="tensorrt")


def _engine(folder: Path, recipe: BuildRecipe = RECIPE) -> Path:
    engine, model = folder / "m.engine", folder / "m.onnx"
    engine.write_bytes(b"engine")
    model.write_bytes(b"model")
    evidence = Evidence("tensorrt", version="10.9.0", device=A6000.name, sm=86)
    write_facts(engine, model, recipe, evidence, sm=(86,), profiles={})
    return engine


def test_an_engine_that_fits_gives_its_facts(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    facts = check_engine(engine, tmp_path / "m.onnx", version="10.9.0", gpu=A6000)
    assert (facts["gpu"], facts["sm"]) == (A6000.name, [86])


def test_a_changed_engine_or_model_is_refused(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"was built from another 'm\.onnx'"):
        check_engine(engine, tmp_path / "m.onnx")
    engine.write_bytes(b"changed")
    with pytest.raises(ModelError, match=r"is not the file that 'm\.engine\.json'"):
        check_engine(engine)


def test_another_version_or_gpu_is_refused(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    with pytest.raises(RuntimeUnavailable, match=r"built by tensorrt 10\.9\.0; 11\.1\.0 is"):
        check_engine(engine, version="11.1.0")
    with pytest.raises(
        RuntimeUnavailable, match=r"SM 86; the GPU here is a NVIDIA A100, SM 80"
    ):
        check_engine(engine, gpu=A100)


def test_another_gpu_of_its_architecture_needs_to_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"on a NVIDIA RTX A6000; .*same-capability"):
        check_engine(_engine(tmp_path), gpu=RTX3090)
    check_engine(_engine(tmp_path, replace(RECIPE, hardware="same-capability")), gpu=RTX3090)
    check_engine(_engine(tmp_path, replace(RECIPE, engine="tensorrt_rtx")), gpu=RTX3090)


def test_what_is_known_of_kernels_is_kept(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    told = check_engine(engine)["sparsity"]
    assert told == {"requested": True, "found": "unknown", "chosen": "unknown"}
    evidence = Evidence("tensorrt", sparsity=Sparsity(found=2, chose=0))
    write_facts(engine, tmp_path / "m.onnx", RECIPE, evidence, profiles={})
    told = check_engine(engine)["sparsity"]
    assert told == {"requested": True, "found": 2, "chosen": 0}


def test_an_engine_for_all_since_ampere_runs_on_another(tmp_path: Path) -> None:
    check_engine(_engine(tmp_path, replace(RECIPE, hardware="ampere-plus")), gpu=A100)


@pytest.mark.parametrize("damage", ["missing", "garbage", "list"])
def test_no_side_file_is_refused(tmp_path: Path, damage: str) -> None:
    engine = _engine(tmp_path)
    facts = engine.with_suffix(".engine.json")
    facts.unlink() if damage == "missing" else facts.write_text(
        "{" if damage == "garbage" else "[]"
    )
    with pytest.raises(ModelError, match=r"m\.engine' \| has "):
        check_engine(engine)


def test_the_drivers_table_is_read() -> None:
    text = (
        "NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920\nOrin (nvgpu), [N/A], 540.4.0, [N/A]\n"
    )
    assert read_gpus(text) == (Gpu("NVIDIA A100-SXM4-80GB", 80, "550.54.15", 81920),)
    assert read_gpus("") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1234, 512\n99, 7\n1234, 1\n", 513 * 2**20),
        ("99, 7\n", None),
        ("1234, [N/A]\n", None),
        ("No running processes found\n", None),
        ("", None),
    ],
)
def test_gpu_memory_of_a_process_is_what_the_driver_lists(
    text: str, expected: int | None
) -> None:
    assert read_process_bytes(text, 1234) == expected
