"""The JSON beside an engine: what it was built from, with and for; and the check before use.

An engine holds native code for one GPU and one version. Loading a strange one fails late and
in words of its own, so its side file is read first.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.parsing import parse_json
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engines import EngineResult, engine_result
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.gpu import Gpu

__all__ = ["Built", "check_engine", "facts_file", "record_engine", "sha256_of", "write_facts"]


def facts_file(engine: Path) -> Path:
    """The side file of an engine: `m.engine.json` for `m.engine`."""
    return engine.with_suffix(".engine.json")


def sha256_of(file: Path) -> str:
    """Returns the digest of a file's bytes."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(partial(stream.read, 2**20), b""):
            total.update(block)
    return total.hexdigest()


@dataclass(frozen=True)
class Built:
    """A build that went well, before its engine is moved to its place.

    Attributes:
        staged: where the engine lies now.
        engine: where it will lie.
        model: the .onnx file.
        digest: of the model, from before the build.
        recipe: what was asked for.
        started: `time.monotonic()` at the start.
        log: file with everything the builder said.
    """

    staged: Path
    engine: Path
    model: Path
    digest: str
    recipe: BuildRecipe
    started: float
    log: Path


def record_engine(
    built: Built,
    evidence: Evidence,
    *,
    sm: tuple[int, ...],
    flags: tuple[str, ...],
    profiles: dict[str, tuple[tuple[int, ...], ...]],
) -> EngineResult:
    """Writes the side file of a new engine and returns what is known of the build.

    Args:
        built: the build.
        evidence: what log and inspector told.
        sm: the architectures it was built for.
        flags: what the builder was given.
        profiles: least, best and most shape by input name.
    """
    write_facts(
        built.staged,
        built.model,
        built.recipe,
        evidence,
        sm=sm,
        flags=flags,
        profiles=profiles,
    )
    return engine_result(
        built.engine,
        evidence,
        size=built.staged.stat().st_size,
        seconds=time.monotonic() - built.started,
        sm=sm,
        log=built.log,
        digest=built.digest,
    )


def write_facts(
    engine: Path,
    model: Path,
    recipe: BuildRecipe,
    evidence: Evidence,
    *,
    sm: tuple[int, ...] = (),
    flags: tuple[str, ...] = (),
    profiles: dict[str, tuple[tuple[int, ...], ...]],
) -> None:
    """Writes the side file of an engine, which lies there already.

    No time is in it, so that equal builds write equal files.

    Args:
        engine: the engine.
        model: the .onnx file.
        recipe: what was asked for.
        evidence: what is known of the result.
        sm: the architectures it was built for.
        flags: what the builder was given.
        profiles: least, best and most shape by input name.
    """
    sparsity = evidence.sparsity
    facts = {
        "backend": recipe.engine,
        "version": evidence.version,
        "model": model.name,
        "model_sha256": sha256_of(model),
        "engine_sha256": sha256_of(engine),
        "bytes": engine.stat().st_size,
        "sm": list(sm),
        "gpu": evidence.device or None,
        "hardware": recipe.hardware,
        "flags": list(flags),
        "profiles": profiles,
        "gpu_memory": {**asdict(evidence.memory), "total": evidence.memory.total},
        "sparsity": {
            "requested": recipe.sparse,
            "found": "unknown" if sparsity.found is None else sparsity.found,
            "chosen": "unknown" if sparsity.chose is None else sparsity.chose,
        },
    }
    facts_file(engine).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def check_engine(
    engine: Path,
    model: Path | None = None,
    *,
    version: str | None = None,
    gpu: Gpu | None = None,
) -> dict[str, Any]:
    """Checks an engine against its side file before it is used.

    Args:
        engine: the engine, its side file beside it.
        model: the .onnx file it should be of; None does not ask.
        version: of the runtime at hand; None does not ask.
        gpu: at hand; None does not ask.

    Returns:
        The side file.

    Raises:
        ModelError: if a file is missing or changed, or the engine is of another model.
        RuntimeUnavailable: if it was built for another version or GPU.
    """
    facts = _read_facts(engine)
    if facts.get("engine_sha256") != sha256_of(engine):
        raise ModelError(
            f"engine '{engine}' | is not the file that '{facts_file(engine).name}' was "
            "written for; build it again"
        )
    if model is not None and facts.get("model_sha256") != sha256_of(model):
        raise ModelError(
            f"engine '{engine}' | was built from another '{facts.get('model')}' than "
            f"'{model}'; build it again"
        )
    if version is not None and facts.get("version") != version:
        raise RuntimeUnavailable(
            f"engine '{engine}' | was built by {facts.get('backend')} {facts.get('version')}; "
            f"{version} is here, which cannot load it; build it again"
        )
    if gpu is not None:
        _check_gpu(engine, facts, gpu)
    return facts


def _read_facts(engine: Path) -> dict[str, Any]:
    try:
        facts = parse_json(facts_file(engine).read_text("utf-8"))
        engine.stat()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"engine '{engine}' | has no readable {facts_file(engine).name} beside it, or is "
            "missing itself; build it with patch-compile"
        ) from error
    if not isinstance(facts, dict):
        raise ModelError(f"engine '{engine}' | has a damaged side file; build it again")
    return facts


def _check_gpu(engine: Path, facts: dict[str, Any], gpu: Gpu) -> None:
    built = list(facts.get("sm") or ())
    portable = facts.get("hardware") == "ampere-plus" and gpu.sm >= 80
    if built and gpu.sm not in built and not portable:
        raise RuntimeUnavailable(
            f"engine '{engine}' | was built for SM {', '.join(map(str, built))}; the GPU here "
            f"is a {gpu.name}, SM {gpu.sm}; build it again here"
        )
    # RTX builds for architectures; TensorRT for the very GPU, unless asked otherwise.
    own = facts.get("hardware") == "same" and facts.get("backend") != "tensorrt_rtx"
    name = facts.get("gpu")
    if own and name and name != gpu.name:
        raise RuntimeUnavailable(
            f"engine '{engine}' | was built on a {name}; the GPU here is a {gpu.name}; build "
            "it again here, or with --hardware same-capability"
        )
