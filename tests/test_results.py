"""A bundle runs on a machine with bash and trtexec alone, and its results come home."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.masks_file import save_masks
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import BuildRecipe, CompileRecipe
from patch_compile.results import bundle_engines, import_results, note_results
from tests.runtimes import published
from tests.runtimes.standin import stand_in
from tests.support import Linear, linear_model, random_weight, three_linears, unpack

RECIPE = BuildRecipe(batch=(1, 2, 4), sequence=(1, 64, 128), optimization_level=2)
BASH = shutil.which("bash")


@pytest.fixture
def compiled(tmp_path: Path, rng: np.random.Generator) -> Path:
    model, masks, _ = three_linears(tmp_path, rng, external=True)
    save_masks(masks, tmp_path / "masks.json")
    # One product a piece: nothing is merged.
    recipe = CompileRecipe(lowering="columns")
    return compile_model(model, masks, recipe).save(tmp_path / "out")


def _bundle(compiled: Path, recipe: BuildRecipe = RECIPE) -> Path:
    folder = compiled.parent.parent
    return bundle_engines(
        compiled,
        folder / "out.tar",
        recipe,
        dense=folder / "model.onnx",
        papers=[folder / "masks.json", folder / "masks.safetensors"],
    )


def _unpacked(bundle: Path) -> Path:
    """Its folder, moved as another machine would have it."""
    away = bundle.parent / "away"
    unpack(bundle, away)
    return away / "patch-compile-bundle"


def _layers(compiled: Path) -> str:
    sites, _ = find_pieces(compiled)
    kernels = {"sparse24": "sm80_xmma_sparse_gemm_f16f16", "dense": "sm80_xmma_gemm_f16f16"}
    layers = [
        {"Name": s.node, "LayerType": "gemm", "TacticName": kernels[s.role], "Metadata": ""}
        for s in sites
    ]
    return json.dumps({"Layers": layers})


def _run(folder: Path, tool: Path | None, rounds: int = 2) -> subprocess.CompletedProcess[str]:
    assert BASH is not None
    given = {} if tool is None else {"TRTEXEC": str(tool)}
    return subprocess.run(
        [BASH, str(folder / "run.sh")],
        env={"PATH": "/usr/bin:/bin", "ROUNDS": str(rounds), **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_bundle_holds_everything_and_nothing_of_this_machine(compiled: Path) -> None:
    bundle = _bundle(compiled)
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    assert {member.name.partition("/")[2] for member in members} == {
        "README.txt",
        "commands/compiled.args",
        "commands/dense.args",
        "commands/dense_again.args",
        "manifest.json",
        "models/compiled/compiled.onnx",
        "models/compiled/compiled.onnx.data",
        "models/dense/model.onnx",
        "models/dense/model.onnx.data",
        "papers/masks.json",
        "papers/masks.safetensors",
        "papers/plan.json",
        "papers/report.json",
        "run.sh",
    }
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
    folder = _unpacked(bundle)
    for name in ("manifest.json", "commands/compiled.args"):
        assert str(compiled.parent.parent) not in (folder / name).read_text("utf-8")
    arguments = (folder / "commands" / "compiled.args").read_text("utf-8").splitlines()
    assert "--optShapes=x:2x64x48" in arguments
    assert "--builderOptimizationLevel=2" in arguments
    onnx.checker.check_model(folder / "models" / "compiled" / "compiled.onnx")


@pytest.mark.parametrize(
    ("lead", "sizes"), [((1, 32), (1, 32)), (("batch", "tokens"), (2, 64))]
)
def test_a_bundle_says_what_its_models_run(
    lead: tuple[int | str, ...],
    sizes: tuple[int, int],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    model = linear_model(
        [Linear("a", random_weight(rng, 8, 16))], tmp_path / "m.onnx", lead=lead
    )
    folder = _unpacked(bundle_engines(model, tmp_path / "out.tar", RECIPE))
    (entry,) = json.loads((folder / "manifest.json").read_text("utf-8"))["models"]
    assert (entry["batch"], entry["tokens"]) == sizes
    shutil.copytree(folder, tmp_path / "results")
    found = import_results(tmp_path / "results")
    assert (found.batch, found.tokens) == sizes


def test_equal_inputs_give_equal_bundles(compiled: Path) -> None:
    first = _bundle(compiled).read_bytes()
    assert _bundle(compiled).read_bytes() == first


def test_there_and_back(compiled: Path, tmp_path: Path) -> None:
    folder = _unpacked(_bundle(compiled))
    log = published.ISSUE_4177 + "(Sparsity) Found 3 layer(s) eligible to use sparse tactics"
    tool = stand_in(tmp_path, log=log, layers=_layers(compiled))
    ran = _run(folder, tool)
    assert ran.returncode == 0, ran.stderr
    assert "timing dense, round 2 of 2" in ran.stdout
    home = tmp_path / "home"
    unpack(folder / "results.tar", home)
    assert not list(home.rglob("*.engine"))
    found = import_results(home / "results")
    assert found.version == "10.5.0"
    first, dense, again = found.models
    assert (first.name, first.error, dense.name, dense.joined) == (
        "compiled",
        "",
        "dense",
        None,
    )
    assert (again.name, again.sha256) == ("dense_again", dense.sha256)
    assert first.rounds == dict.fromkeys(range(3), (2.5, 2.25))
    assert first.median == 2.375
    assert (first.evidence.device, first.evidence.sparsity.found) == ("NVIDIA RTX A6000", 3)
    assert first.joined is not None
    assert (first.joined.chosen, first.joined.layers, first.joined.dense_layers) == (3, 6, 6)
    note_results(found, compiled)
    (engine,) = json.loads((compiled.parent / "report.json").read_text("utf-8"))["engines"]
    assert (engine["chosen"], engine["gpu"]) == (3, "NVIDIA RTX A6000")
    json.dumps(found.to_json(), allow_nan=False)


def test_the_script_gives_ten_what_eleven_does_itself(compiled: Path, tmp_path: Path) -> None:
    folder = _unpacked(_bundle(compiled))
    assert _run(folder, stand_in(tmp_path), 1).returncode == 0
    banner = (folder / "results" / "compiled" / "build.log").read_text("utf-8").splitlines()[0]
    for flag in ("--stronglyTyped", "--useCudaGraph", "--separateProfileRun", "--verbose"):
        assert flag in banner.split()
    timed = (folder / "results" / "dense" / "time.1.log").read_text("utf-8").splitlines()[0]
    assert "--shapes=x:2x64x48" in timed.split()


def test_precision_flags_leave_strong_types_out(compiled: Path, tmp_path: Path) -> None:
    folder = _unpacked(_bundle(compiled, BuildRecipe(precision=("fp16",))))
    _run(folder, stand_in(tmp_path), 1)
    banner = (folder / "results" / "compiled" / "build.log").read_text("utf-8").splitlines()[0]
    assert "--fp16" in banner.split()
    assert "--stronglyTyped" not in banner.split()


def test_a_machine_without_trtexec_is_told_what_to_do(compiled: Path) -> None:
    ran = _run(_unpacked(_bundle(compiled)), None)
    assert ran.returncode == 1
    assert "TRTEXEC=/path/to/trtexec bash run.sh" in ran.stderr


def test_a_failed_build_is_an_error_of_its_model(compiled: Path, tmp_path: Path) -> None:
    folder = _unpacked(_bundle(compiled))
    during = "print('[E] [TRT] out of memory', flush=True); sys.exit(3)"
    ran = _run(folder, stand_in(tmp_path, during=during))
    assert ran.returncode == 1
    assert "out of memory" in ran.stderr
    first, *_ = import_results(folder / "results").models
    assert first.error == "trtexec ended with 3: out of memory"
    assert first.joined is not None
    assert first.joined.chosen == "unknown"
    with pytest.raises(ModelError, match="is none that the results hold an engine of"):
        note_results(import_results(folder / "results"), compiled)


def test_results_of_another_model_are_not_noted(compiled: Path, tmp_path: Path) -> None:
    folder = _unpacked(_bundle(compiled))
    _run(folder, stand_in(tmp_path, layers=_layers(compiled)), 1)
    proto = onnx.load(compiled, load_external_data=False)
    proto.doc_string = "another"
    onnx.save(proto, compiled)
    with pytest.raises(ModelError, match="is none that the results hold an engine of"):
        note_results(import_results(folder / "results"), compiled)


@pytest.mark.parametrize(
    "manifest", [None, "{", "{}", '{"recipe": {"sparse": true}, "models": [{"name": "../x"}]}']
)
def test_other_folders_are_refused(tmp_path: Path, manifest: str | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ModelError, match=r"results '.*' \| ") as caught:
        import_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_flag_with_a_line_break_is_refused(compiled: Path) -> None:
    with pytest.raises(RecipeError, match="a line break"):
        _bundle(compiled, BuildRecipe(flags=("--a\nb",)))
    assert not (compiled.parent.parent / "out.tar").exists()


def test_a_missing_paper_is_told(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bundle \| lacks '.*none\.json'"):
        bundle_engines(compiled, tmp_path / "o.tar", papers=[tmp_path / "none.json"])
    assert not (tmp_path / "o.tar").exists()
