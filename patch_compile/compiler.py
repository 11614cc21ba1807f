"""The main job: bind, plan, rewrite, check.

N: out features. K: in features.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import PassError

from patch_compile.digest_check import DigestCheck, check_digests
from patch_compile.errors import InternalError, MaskError, ModelError
from patch_compile.io.atomic import stage_text, staged_folder
from patch_compile.io.layout import drop_stale, is_data_of
from patch_compile.io.onnx_model import external_files, load_model
from patch_compile.io.save_model import save_model
from patch_compile.io.unchanged import Signature, check_unchanged, signatures
from patch_compile.masking import bind_masks, shapes, stamp_of
from patch_compile.names import written
from patch_compile.page.render import page_of
from patch_compile.passes.binding import Binding
from patch_compile.passes.jobs import Jobs, jobs_of
from patch_compile.passes.legal import check_whole
from patch_compile.passes.pipeline import inline, lower, node_names, value_names
from patch_compile.passes.precision import cast_model
from patch_compile.passes.sites import COMPILED_ALREADY, STAMP
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import CompileRecipe
from patch_compile.report import Report
from patch_compile.reporting import (
    group_reports,
    predictions,
    target_facts,
    versions,
    weight_report,
    with_digests,
)
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.plan import Plan
from patch_compile.tiles.time_cost import cost_of
from patch_compile.tiles.weight_mask import concatenate

__all__ = [
    "COMPILED",
    "Compiled",
    "Planned",
    "Progress",
    "compile_model",
    "plan_model",
]

Progress = Callable[[int, int, str], None]

# Negative axes came with opset 11.
_OPSET = 11

# The name of what a compile writes.
COMPILED = "compiled.onnx"


@dataclass(frozen=True)
class Planned:
    """A decision and what is to be said of it.

    Attributes:
        plan: the decision for every weight.
        report: what happens to every weight, and why.
    """

    plan: Plan
    report: Report


@dataclass(frozen=True)
class Compiled(Planned):
    """A rewritten model whose pieces are made when it is saved.

    Saving also compares the weights with the digests of their masks, as it reads them: the
    report here says `unknown` of them.

    Attributes:
        model: the graph; its weights still lie in the input's files.
        source: the .onnx file it was read from, if it was.
        bindings: the weights whose digests are compared.
        shard_bytes: data files are no larger; None writes one.
        read: that file and those of its weights, as they were when they were opened.
    """

    model: ir.Model
    source: Path | None
    bindings: tuple[Binding, ...] = ()
    shard_bytes: int | None = None
    read: Mapping[Path, Signature] = field(default_factory=dict)

    def save(self, folder: str | Path, progress: Progress | None = None) -> Path:
        """Writes compiled.onnx, its data, its plan and its reports, all or nothing.

        Args:
            folder: of compiled.onnx, its data, plan.json, report.json and report.html; made
                if missing; files of an earlier run are replaced at the end.
            progress: called with (bytes done, bytes in all, file name).

        Returns:
            The path of compiled.onnx.

        Raises:
            ModelError: if the folder cannot be written, the disk is full, the model's own
                files would be overwritten, or were changed since they were opened.
            MaskError: if a weight is another than its mask was made for.
        """
        folder = Path(folder)
        self._refuse_own_files(folder)
        with staged_folder(folder) as stage:
            checked = self._stream(stage / COMPILED, progress)
            plan, report = self._papers(with_digests(self.report, checked))
            stage_text(stage / "plan.json", plan)
            stage_text(stage / "report.json", report)
            stage_text(stage / "report.html", page_of(report))
            check_unchanged(self.read)
            fresh = {file.name for file in stage.iterdir()}
        drop_stale(folder, COMPILED, fresh)
        return folder / COMPILED

    def _stream(self, path: Path, progress: Progress | None) -> dict[str, str]:
        """Writes the model; returns what is known of digests by then, by mask name."""
        checks = [DigestCheck(binding) for binding in self.bindings]
        watches = {id(check.tensor): check for check in checks if check.needed}
        save_model(self.model, path, progress, shard_bytes=self.shard_bytes, watches=watches)
        # Weights so small that their pieces are in the .onnx file were not read as a stream.
        return {name: word for check in checks for name, word in check.read().items()}

    def _refuse_own_files(self, folder: Path) -> None:
        """The weights still lie in the input's files: they must outlive the writing."""
        read = external_files(self.model) | ({self.source} if self.source else set())
        beside = [path for path in read if path.resolve().parent == folder.resolve()]
        own = sorted(str(path) for path in beside if _is_written(path.resolve().name))
        if own:
            raise ModelError(
                f"output folder '{folder}' | holds the input itself ('{own[0]}'), which would "
                "be overwritten; choose another folder (-o)"
            )

    def _papers(self, checked: Report) -> tuple[str, str]:
        """plan.json and report.json; a model compiled before keeps those beside it."""
        papers = self.plan.to_json(), checked.to_json()
        if self.source is None or not self._compiled_before():
            return papers
        plan, report = (self.source.with_name(n) for n in ("plan.json", "report.json"))
        if not (plan.is_file() and report.is_file()):
            return papers
        return plan.read_text("utf-8"), report.read_text("utf-8")

    def _compiled_before(self) -> bool:
        changed = any(weight.lowering != "untouched" for weight in self.report.weights)
        return COMPILED_ALREADY in self.report.left_alone.values() and not changed


def _is_written(name: str) -> bool:
    """Whether a compile writes or removes a file of this name."""
    return name == COMPILED or is_data_of(COMPILED, name)


def compile_model(
    model: str | Path | ir.Model,
    masks: str | Path | Masks,
    recipe: CompileRecipe | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Rewrites a model so that every masked product is cut into dense and 2:4 pieces.

    Args:
        model: path of an .onnx file, or a model in memory, which is rewritten in place.
        masks: masks, the path of a mask file, or `infer` for the zeros of the weights.
        recipe: see `CompileRecipe`; defaults compute the masked model exactly.
        progress: called with (weights done, weights in all, what).

    Returns:
        The compiled model; nothing is written until it is saved, and no digest compared.

    Raises:
        MaskError: a mask is damaged or fits no weight.
        ModelError: the model cannot be read.
        RecipeError: the recipe contradicts itself, or leaves no mask.
    """
    compiled, jobs = _planned(model, masks, recipe or CompileRecipe(), progress)
    try:
        lower(compiled.model, jobs)
    except PassError as error:
        raise InternalError(f"rewrite | failed: {error.__cause__ or error}") from error
    return compiled


def plan_model(
    model: str | Path | ir.Model,
    masks: str | Path | Masks,
    recipe: CompileRecipe | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Does all of `compile_model` but the rewrite, and compares digests: a dry run.

    Model-local functions of a model in memory are inlined; see `compile_model` for the rest.
    """
    compiled, _ = _planned(model, masks, recipe or CompileRecipe(), progress)
    checked = check_digests(compiled.bindings, progress)
    return Planned(compiled.plan, with_digests(compiled.report, checked))


def _planned(
    model: str | Path | ir.Model,
    masks: str | Path | Masks,
    recipe: CompileRecipe,
    progress: Progress | None,
) -> tuple[Compiled, Jobs]:
    source = None if isinstance(model, ir.Model) else Path(model)
    opened = {} if source is None else signatures([source])
    graph = model if isinstance(model, ir.Model) else load_model(Path(model))
    opened |= signatures(external_files(graph))
    _check_opset(graph)
    check_whole(graph)
    if recipe.dtype is not None:
        inline(graph)
        graph = cast_model(graph, recipe.dtype)
    bindings, left_alone, known = bind_masks(graph, masks, recipe, progress)
    stamp = stamp_of(known, recipe)
    _check_stamp(graph, stamp, left_alone)
    cost = cost_of(recipe, shapes(bindings))
    structure = find_structure(graph, [b.site for b in bindings])
    plan = plan_weights({b.site.name: b.masks for b in bindings}, structure, recipe, cost)
    groups = {name: group for group in plan.groups for name in group.weights}
    predicted = {} if cost is None else predictions(plan, cost)
    work = [(b, p, concatenate(b.masks)) for b, p in zip(bindings, plan.weights, strict=True)]
    jobs = jobs_of(plan, work, restore=recipe.restore)
    report = Report(
        tuple(
            weight_report(
                b,
                p,
                m,
                lowered=p.weight in jobs,
                restore=recipe.restore,
                group=groups.get(p.weight),
                predicted=predicted.get(p.weight, ()),
            )
            for b, p, m in work
        ),
        left_alone,
        asdict(recipe),
        known.made_by,
        versions(),
        inputs=_inputs(model, masks),
        groups=group_reports(plan),
        target=target_facts(cost),
        profile=() if cost is None else recipe.profile,
    )
    plan = replace(plan, predicted=report.predicted, speedup=report.speedup)
    aliases = {alias: job for job in jobs.values() for alias in job.aliases}
    all_jobs = Jobs(
        jobs | aliases,
        value_names(graph),
        node_names(graph),
        stamp,
        groups,
        graph.opset_imports.get("", _OPSET),
    )
    unchecked = tuple(bindings) if recipe.check_digests else ()
    compiled = Compiled(plan, report, graph, source, unchecked, recipe.shard_bytes, opened)
    return compiled, all_jobs


def _inputs(model: str | Path | ir.Model, masks: str | Path | Masks) -> dict[str, str]:
    """The names of what was read; their folders are nobody's business."""
    given = {"model": model, "masks": masks}
    return {word: written(x) for word, x in given.items() if isinstance(x, str | Path)}


def _check_opset(model: ir.Model) -> None:
    version = model.opset_imports.get("", _OPSET)
    if version < _OPSET:
        raise ModelError(
            f"model | has opset {version}; expected {_OPSET} or more, whose Slice, Reshape "
            "and Gather the pieces need; convert it with onnx.version_converter"
        )


def _check_stamp(model: ir.Model, stamp: str, left_alone: Mapping[str, str]) -> None:
    done = sum(reason == COMPILED_ALREADY for reason in left_alone.values())
    if done and model.metadata_props.get(STAMP) != stamp:
        raise MaskError(
            f"model | was compiled before, with other masks, another choice of weights or "
            f"another restore ({done} weights); compile the dense original"
        )
