"""Bundles for a GPU machine, and what comes back from it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.joining import Joined, PieceSite, join
from patch_compile.noting import note_engine
from patch_compile.parsing import DAMAGE, parse_json
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engine_file import sha256_of
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.gpu import Gpu, read_gpus
from patch_compile.runtimes.layer_info import read_profile, read_times
from patch_compile.runtimes.trtexec import read_evidence
from patch_compile.runtimes.trtexec_log import read_errors, read_version

__all__ = ["ModelResult", "Results", "bundle_engines", "import_results", "note_results"]

Progress = Callable[[int, int, str], None]

_DENSE, _AGAIN = "dense", "dense_again"
_TIMES = re.compile(r"times\.(0|[1-9][0-9]{0,5})\.json")


@dataclass(frozen=True)
class ModelResult:
    """What became of one model on the GPU machine.

    Attributes:
        name: in the bundle, as in `compiled` or `dense`.
        sha256: of its .onnx file.
        error: why there is no engine; empty if there is one.
        evidence: what its build told.
        joined: its 2:4 products; None for a model without pieces.
        rounds: milliseconds on the GPU of every run, by the number of the round of timing;
            round 0 is that of the build, and a round that failed is absent.
        profile: median milliseconds of every layer.
        bytes: size of the engine; None if unknown.
    """

    name: str
    sha256: str
    error: str
    evidence: Evidence
    joined: Joined | None
    rounds: Mapping[int, tuple[float, ...]]
    profile: dict[str, float]
    bytes: int | None

    @property
    def median(self) -> float | None:
        """The median milliseconds over all rounds of timing; None if nothing was timed."""
        runs = self.timed
        return median(runs) if runs else None

    @property
    def timed(self) -> list[float]:
        """Milliseconds of all runs in turns; those of the build if there are no others."""
        turns = [times for number, times in self.rounds.items() if number]
        return [run for times in turns or self.rounds.values() for run in times]

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        evidence = self.evidence
        return {
            "name": self.name,
            "sha256": self.sha256,
            "error": self.error,
            "bytes": self.bytes,
            "median_ms": self.median,
            "rounds_ms": {str(number): list(times) for number, times in self.rounds.items()},
            "performance": None
            if evidence.performance is None
            else asdict(evidence.performance),
            "sparsity": asdict(evidence.sparsity),
            "products": None if self.joined is None else self.joined.to_json(),
            "profile_ms": self.profile,
        }


@dataclass(frozen=True)
class Results:
    """All that came back.

    Attributes:
        version: of TensorRT; empty if unknown.
        gpu: of the machine; None if its driver did not tell.
        batch: sequences of every timed run.
        tokens: of each sequence.
        models: in the order of the bundle.
    """

    version: str
    gpu: Gpu | None
    batch: int
    tokens: int
    models: tuple[ModelResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "version": self.version,
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "batch": self.batch,
            "tokens": self.tokens,
            "models": [model.to_json() for model in self.models],
        }


def bundle_engines(
    model: str | Path,
    target: str | Path,
    recipe: BuildRecipe | None = None,
    *,
    dense: str | Path | None = None,
    papers: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Path:
    """Packs a compiled model for a machine that has a GPU and trtexec, and nothing of ours.

    Args:
        model: the compiled .onnx file; plan.json and report.json beside it go along.
        target: the .tar file to write.
        recipe: how engines are built there.
        dense: the original, to be built twice and timed beside it.
        papers: further files to take along, as the masks.
        progress: called with (bytes done, bytes in all, what).

    Raises:
        ModelError: if a file cannot be read.
        RecipeError: if trtexec cannot do what the recipe asks.
    """
    bundle = require("patch_compile.runtimes.bundle", "rtx")
    model = Path(model)
    sites, nodes = find_pieces(model)
    facts = {"nodes": nodes, "pieces": [asdict(site) for site in sites]}
    models = [bundle.BundledModel("compiled", model, facts)]
    if dense is not None:
        plain = {"nodes": 0, "pieces": []}
        models.append(bundle.BundledModel(_DENSE, Path(dense), plain))
        # Built once more: what choosing kernels anew changes is the noise.
        models.append(bundle.BundledModel(_AGAIN, Path(dense), plain, files=_DENSE))
    beside = [model.with_name(name) for name in ("plan.json", "report.json")]
    taken = [*(path for path in beside if path.is_file()), *map(Path, papers)]
    path: Path = bundle.write_bundle(
        Path(target), models, recipe or BuildRecipe(engine="trtexec"), taken, progress
    )
    return path


def import_results(folder: str | Path) -> Results:
    """Reads what a bundle's script left: logs, layers and times of every model.

    Args:
        folder: the unpacked `results/`.

    Raises:
        ModelError: if the folder is none of a bundle, or a file is damaged.
    """
    folder = Path(folder)
    sent = _manifest(folder)
    _refuse_links([folder, *(folder / model.name for model in sent.models)])
    gpu = next(iter(read_gpus(_text(folder / "gpu.csv"))), None)
    version = read_version(_text(folder / "trtexec.txt"))
    found = {m.name: _evidence(folder / m.name, m, gpu, sent.requested) for m in sent.models}
    return Results(
        version="" if version is None else ".".join(map(str, version)),
        gpu=gpu,
        batch=sent.batch,
        tokens=sent.tokens,
        models=tuple(_result(folder, model, found) for model in sent.models),
    )


@dataclass(frozen=True)
class _Sent:
    """What the bundle's manifest says of one model.

    Attributes:
        name: of its folder.
        sha256: of its .onnx file.
        nodes: that it has.
        sites: its products.
        symbols: sizes of its dynamic axes.
    """

    name: str
    sha256: str
    nodes: int
    sites: tuple[PieceSite, ...]
    symbols: dict[str, int]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "_Sent":
        """Reads an entry; see `DAMAGE` for what it raises."""
        return cls(
            name=str(entry["name"]),
            sha256=str(entry["sha256"]),
            nodes=int(entry["nodes"]),
            sites=tuple(_site(piece) for piece in entry.get("pieces", ())),
            symbols={str(k): int(v) for k, v in entry.get("symbols", {}).items()},
        )


def _site(piece: Mapping[str, Any]) -> PieceSite:
    n, k = piece["shape"]
    lead = piece["lead"]
    return PieceSite(
        node=str(piece["node"]),
        weight=str(piece["weight"]),
        role=str(piece["role"]),
        shape=(int(n), int(k)),
        dtype=str(piece["dtype"]),
        eligible=bool(piece["eligible"]),
        lead=None if lead is None else tuple(_axis(axis) for axis in lead),
    )


def _axis(axis: Any) -> int | str | None:
    return axis if axis is None or isinstance(axis, int) else str(axis)


@dataclass(frozen=True)
class _Manifest:
    """What a bundle says: sizes of a run, and whether sparse kernels were asked for."""

    requested: bool
    batch: int
    tokens: int
    models: Sequence[_Sent]


def _manifest(folder: Path) -> _Manifest:
    path = folder / "manifest.json"
    try:
        manifest = parse_json(path.read_text("utf-8"))
        recipe = manifest["recipe"]
        # Bundles of older releases say what was asked, not what ran.
        asked = {"batch": recipe["batch"][1], "tokens": recipe["sequence"][1]}
        sizes = {**asked, **next(iter(manifest["models"]), {})}
        sent = _Manifest(
            requested=bool(recipe["sparse"]),
            batch=int(sizes["batch"]),
            tokens=int(sizes["tokens"]),
            models=[_Sent.of(entry) for entry in manifest["models"]],
        )
    except DAMAGE as error:
        raise ModelError(
            f"results '{folder}' | hold no readable manifest.json: {error}; give the folder "
            "that run.sh packed, unpacked"
        ) from error
    strange = [model.name for model in sent.models if not model.name.isidentifier()]
    if strange:
        raise ModelError(
            f"results '{folder}' | name a model {strange[0]!r}; unpack them again"
        )
    return sent


def _refuse_links(folders: Sequence[Path]) -> None:
    """What was packed elsewhere must not make us read files of this machine."""
    places = [place for place in folders if place.is_dir()]
    links = [path for place in places for path in place.iterdir() if path.is_symlink()]
    links += [folder for folder in folders[1:] if folder.is_symlink()]
    if links:
        raise ModelError(
            f"results '{folders[0]}' | hold a symbolic link, '{links[0].name}', which run.sh "
            "does not make; unpack them again"
        )


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _evidence(folder: Path, model: _Sent, gpu: Gpu | None, sparse: bool) -> Evidence:
    told = read_evidence(
        folder / "build.log",
        folder / "layers.json",
        requested=sparse,
        symbols=model.symbols,
    )
    if told.device or gpu is None:
        return told
    return replace(told, device=gpu.name, sm=gpu.sm)


def _result(folder: Path, model: _Sent, found: dict[str, Evidence]) -> ModelResult:
    name, sites = model.name, model.sites
    place = folder / name
    evidence = found[name]
    joined = join(sites, model.nodes, evidence, found.get(_DENSE)) if sites else None
    profile, size = _text(place / "profile.json"), _text(place / "bytes").strip()
    return ModelResult(
        name=name,
        sha256=model.sha256,
        error=_error(place),
        evidence=evidence,
        joined=joined,
        rounds=_rounds(place),
        profile=read_profile(profile, f"profile of '{name}'") if profile else {},
        bytes=int(size) if re.fullmatch("[0-9]{1,18}", size) else None,
    )


def _error(place: Path) -> str:
    status = _text(place / "status").strip()
    if status == "0":
        return ""
    errors = read_errors(_text(place / "build.log").splitlines())
    said = f": {errors[0]}" if errors else ""
    return f"trtexec ended with {status}{said}" if status else "trtexec was not run"


def _rounds(place: Path) -> dict[int, tuple[float, ...]]:
    names = (_TIMES.fullmatch(path.name) for path in place.glob("times.*.json"))
    numbers = sorted(int(name[1]) for name in names if name is not None)
    texts = [(n, _text(place / f"times.{n}.json")) for n in numbers]
    return {n: tuple(read_times(text, f"times '{place}', round {n}")) for n, text in texts}


def note_results(results: Results, model: str | Path) -> None:
    """Puts the engine of a compiled model into the report beside it.

    Args:
        results: what came back.
        model: the compiled .onnx file that went out.

    Raises:
        ModelError: if the results are of another model, or it has no report.
    """
    model = Path(model)
    digest = sha256_of(model) if model.is_file() else ""
    for found in results.models:
        if found.sha256 == digest and found.joined is not None and not found.error:
            sm = () if found.evidence.sm is None else (found.evidence.sm,)
            name = f"{found.name} on {found.evidence.device or 'an unknown GPU'}"
            if note_engine(model, name, sm, found.evidence, found.joined):
                return
    raise ModelError(
        f"model '{model}' | is none that the results hold an engine of, or has no report.json "
        "beside it; give the compiled.onnx that was bundled"
    )
