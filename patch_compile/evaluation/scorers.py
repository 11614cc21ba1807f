"""Language models as functions of token ids, so that torch and ONNX share all that follows.

N: out features. K: in features. B: batch. T: tokens. V: size of the vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.compiler import plan_model
from patch_compile.errors import MaskError, ModelError
from patch_compile.io.load_masks import load_masks
from patch_compile.io.onnx_model import load_model
from patch_compile.masking import bind_masks
from patch_compile.passes.sites import STAMP
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks

if TYPE_CHECKING:
    from patch_compile.learn.linears import Linear
    from patch_compile.learn.model import LoadedModel
    from patch_compile.passes.binding import Binding
    from patch_compile.runtimes.onnxruntime import Session
    from patch_compile.runtimes.perplexity import Encode, Score

__all__ = ["Scorer", "open_scorer"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Scorer:
    """A causal language model, dense or masked.

    Attributes:
        score: from token ids, int64 (B, T), to logits, float (B, T, V).
        encode: its tokenizer.
        sparsity: of its masks; None without.
        unapplied: masks that were not applied, each with the reason.
    """

    score: "Score"
    encode: "Encode"
    sparsity: float | None = None
    unapplied: Mapping[str, str] = field(default_factory=dict)


def open_scorer(
    model: str,
    masks: str | Path | Masks | None = None,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> Scorer:
    """Loads a model, applies masks, and checks that no position sees later tokens.

    Args:
        model: an .onnx file, a Hugging Face directory, a hub id, or a GGUF file.
        masks: masks or the path of a mask file.
        tokenizer: `tokenizer.json`; by default the model's own.
        progress: called with (weights done, weights in all, what).

    Raises:
        ModelError: the model cannot be loaded or run, or is no causal language model.
        MaskError: the masks do not belong to the model, or it was compiled with its own.
        RuntimeUnavailable: onnxruntime, torch or transformers is missing.
    """
    if Path(model).suffix == ".onnx":
        return _open_onnx(Path(model), masks, tokenizer, progress)
    scorer = _open_torch(model, masks, tokenizer)
    require("patch_compile.runtimes.perplexity", "cpu").check_causal(model, scorer.score)
    return scorer


def _open_onnx(
    path: Path,
    masks: str | Path | Masks | None,
    tokenizer: Path | None,
    progress: Progress | None,
) -> Scorer:
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")
    require("onnxruntime", "cpu")
    encode: Encode = perplexity.open_tokenizer(tokenizer or path.parent / "tokenizer.json")
    known: dict[str, Any] = {}
    if masks is None:
        session = runtime.open_session(path)
    else:
        session, unapplied, taken = _masked_session(path, masks, progress)
        known = {"sparsity": taken.sparsity, "unapplied": unapplied}
    score = perplexity.session_scorer(session)
    perplexity.check_causal(str(path), score, perplexity.session_length(session))
    return Scorer(score, encode, **known)


def _masked_session(
    path: Path, masks: str | Path | Masks, progress: Progress | None
) -> "tuple[Session, dict[str, str], Masks]":
    reference = require("patch_compile.runtimes.reference", "cpu")
    graph = load_model(path)
    if STAMP in graph.metadata_props:
        raise MaskError(
            f"model '{path}' | was compiled and holds its masks already; leave --masks out, "
            "or give the dense model with them"
        )
    # Planning compares the digests; it changes nothing.
    plan_model(graph, masks, CompileRecipe(), progress)
    bindings, left_alone, taken = bind_masks(graph, masks, CompileRecipe())
    tensors = [
        reference.MaskedTensor(b.site.name, partial(_keep, b), b.site.weight.transposed)
        for b in bindings
    ]
    session: Session = reference.open_reference(path, tensors, progress=progress)
    return session, {n: left_alone[n] for n in taken.weights if n in left_alone}, taken


def _keep(binding: "Binding") -> NDArray[np.bool_]:
    return np.concatenate([mask.keep() for mask in binding.masks])


def _open_torch(
    model: str, masks: str | Path | Masks | None, tokenizer: Path | None
) -> Scorer:
    require("torch", "learn")
    loaded: LoadedModel = require("patch_compile.learn.model", "learn").load_model(model)
    if loaded.masked:
        raise ModelError(
            f"model '{model}' | is a masked language model, and perplexity and zero-shot "
            "likelihoods are of the next token; expected a causal one. `learn` judges an "
            "encoder by its loss on hidden tokens, `held_out` in log.csv"
        )
    sparsity = None if masks is None else _apply(loaded, masks)
    if tokenizer is None:
        return Scorer(partial(_torch_logits, loaded), partial(_ids, loaded), sparsity)
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")
    encode = perplexity.open_tokenizer(tokenizer)
    return Scorer(partial(_torch_logits, loaded), encode, sparsity)


def _ids(loaded: "LoadedModel", text: str, special: bool) -> list[int]:
    # Not verbose: a text longer than the model's context is cut into windows later.
    found = loaded.tokenizer(text, add_special_tokens=special, verbose=False)
    return list(found["input_ids"])


def _torch_logits(loaded: "LoadedModel", tokens: NDArray[np.int64]) -> NDArray[Any]:
    torch = require("torch", "learn")
    quietly = require("patch_compile.learn._quiet", "learn")
    ids = torch.tensor(tokens)
    try:
        with torch.inference_mode(), quietly.quiet():
            logits = loaded.module(input_ids=ids, use_cache=False).logits
    except (IndexError, RuntimeError) as error:
        raise ModelError(
            f"model '{loaded.name}' | cannot be run on {tuple(tokens.shape)} tokens up to "
            f"{tokens.max()}: {quietly.first_line(error)}; give its own tokenizer, or a "
            "window that it was made for"
        ) from error
    found: NDArray[Any] = logits.float().numpy()
    return found


def _apply(loaded: "LoadedModel", masks: str | Path | Masks) -> float:
    """Sets what the masks do not keep to zero, in place, and returns their sparsity."""
    torch = require("torch", "learn")
    linears: dict[str, Linear] = require("patch_compile.learn.linears", "learn").find_linears(
        loaded.module
    )
    widths = {name: linear.shape[1] for name, linear in linears.items()}
    given = masks if isinstance(masks, Masks) else load_masks(masks, in_features=widths.get)
    require("patch_compile.learn.export", "learn").check_masks(loaded, linears, given)
    for name, mask in given.weights.items():
        gone = torch.from_numpy(~mask.keep())
        with torch.no_grad():
            linears[name].matrix(linears[name].weight).masked_fill_(gone, 0.0)
    return given.sparsity
