"""Language models from a folder, the hub or a GGUF file, and back to a folder."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from patch_compile._require import require
from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.atomic import check_writable, staged_folder
from patch_compile.learn._quiet import first_line, quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DTYPES",
    "LoadedModel",
    "check_place",
    "load_model",
    "save_checkpoint",
    "save_companions",
]

_log = logging.getLogger(__name__)

# The recipe's word for each element type, and the name torch and the digests give it.
DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

_EXPECTED = "expected a folder, GGUF file or hub id of a causal or masked language model"
# Building layers without end comes before their weights are missed.
_MOST_LAYERS = 10_000
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer.

    Attributes:
        module: the language model, causal or masked.
        tokenizer: of that model.
        name: what people call it; never a path.
        stated: the element type of its checkpoint, if its configuration names one.
    """

    module: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    stated: str | None = None

    def __post_init__(self) -> None:
        # Dropout would make masks and exported graphs random.
        self.module.train(False)

    @property
    def masked(self) -> bool:
        """It fills in hidden tokens (an encoder), rather than predicting the next one."""
        known = require("transformers", "learn").MODEL_FOR_MASKED_LM_MAPPING
        return type(self.module) is known.get(type(self.module.config), None)

    @property
    def mask_token(self) -> int | None:
        """What stands for a hidden token in a masked language model; None in a causal one.

        Raises:
            ModelError: if the tokenizer of a masked one has none.
        """
        if not self.masked:
            return None
        token = self.tokenizer.mask_token_id
        if not isinstance(token, int):
            raise ModelError(
                f"model '{self.name}' | is a masked language model, and its tokenizer has no "
                "mask token; put a tokenizer that has one beside the weights"
            )
        return token

    @property
    def dtype(self) -> str:
        """The element type of the weights: `float32`, `float16` or `bfloat16`."""
        return str(self.module.dtype).removeprefix("torch.")

    def narrowed(self) -> "LoadedModel":
        """Returns itself, its weights in place of the type that its checkpoint states.

        Only if every one of them fits it exactly; if none is stated, the first of bfloat16 and
        float16 that they fit.
        """
        torch = require("torch", "learn")
        weights = list(self.module.parameters())
        for name in (self.stated,) if self.stated else ("bfloat16", "float16"):
            kind = getattr(torch, name)
            if all(
                torch.equal(weight.to(kind).to(weight.dtype), weight) for weight in weights
            ):
                self.module.to(kind)
                break
        return self


@dataclass(frozen=True)
class _Place:
    """Where transformers finds a model."""

    source: str
    options: Mapping[str, str]
    name: str


def load_model(source: str, dtype: str = "fp32") -> LoadedModel:
    """Loads a causal or masked language model on the CPU.

    Args:
        source: a Hugging Face folder, a GGUF file, or a hub id.
        dtype: element type of the weights: `fp32`, `fp16` or `bf16`.

    Raises:
        ModelError: if it is missing, cannot be fetched, is damaged, incomplete, no language
            model, or of an architecture that transformers does not know.
        RecipeError: if `dtype` is none of the three.
        RuntimeUnavailable: if torch, transformers or gguf is missing.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"dtype | is '{dtype}'; expected one of {sorted(DTYPES)}")
    place = _place(source)
    with quiet():
        config = _config(place)
        stated = str(config.dtype).removeprefix("torch.")
        module = _module(place, config, DTYPES[dtype])
        known = stated if stated in DTYPES.values() else None
        return LoadedModel(module, _tokenizer(place), place.name, known)


def _place(source: str) -> _Place:
    path = Path(source)
    if path.is_dir():
        return _Place(source, {}, path.resolve().name)
    if path.is_file():
        return _gguf(path)
    if _HUB_ID.fullmatch(source) is not None and path.suffix.lower() != ".gguf":
        _tell_of_hub(source)
        return _Place(source, {}, source)
    raise ModelError(f"model '{source}' | does not exist; {_EXPECTED}")


def _tell_of_hub(source: str) -> None:
    """Says of a name that may be a mistyped path why the next half minute passes silently."""
    hub = require("huggingface_hub", "learn")
    if hub.try_to_load_from_cache(source, "config.json") is None:
        _log.warning(
            "model '%s' | no such folder or file; asking the Hugging Face hub", source
        )


def _gguf(path: Path) -> _Place:
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"model '{path}' | is a file that does not end in .gguf; {_EXPECTED}")
    require("gguf", "learn")
    return _Place(str(path.parent), {"gguf_file": path.name}, path.name)


def _config(place: _Place) -> "PretrainedConfig":
    transformers = require("transformers", "learn")
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            place.source, trust_remote_code=False, **place.options
        )
    # Transformers, gguf and tokenizers check little of what a file says, and raise whatever
    # the first surprise makes of it; nothing else is called here, nor below.
    except Exception as error:
        here = Path(place.source).is_dir()
        problem = "cannot be read" if here else "is not on this disk and cannot be fetched"
        raise ModelError(
            f"model '{place.source}' | {problem}: {first_line(error)}; {_EXPECTED}"
        ) from error
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if not (causal or _is_masked(config)):
        raise ModelError(
            f"model '{place.source}' | is a '{config.model_type}', which is neither a causal "
            f"nor a masked language model; {_EXPECTED}"
        )
    packed = getattr(config, "quantization_config", None)
    if packed is not None and not place.options:
        how = packed.get("quant_method") if isinstance(packed, dict) else packed
        raise ModelError(
            f"model '{place.source}' | is quantised ({how}), and masks are for float weights; "
            "expected the checkpoint that it was made from, or a GGUF file"
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise ModelError(
            f"model '{place.source}' | has {layers} layers, by its configuration; expected "
            f"{_MOST_LAYERS} at most; fetch it again"
        )
    return config


def _is_masked(config: "PretrainedConfig") -> bool:
    """Tells whether a model is to be loaded as a masked language model.

    Most encoders can be decoders too: the checkpoint says what it is, else the config.
    """
    known = require("transformers", "learn").MODEL_FOR_MASKED_LM_MAPPING
    if type(config) not in known or getattr(config, "is_decoder", False):
        return False
    stated = config.architectures or []
    return not any("CausalLM" in name or "LMHead" in name for name in stated)


def _module(place: _Place, config: "PretrainedConfig", dtype: str) -> "PreTrainedModel":
    torch = require("torch", "learn")
    transformers = require("transformers", "learn")
    options: dict[str, Any] = dict(place.options) or {"config": config}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        kind = "MaskedLM" if _is_masked(config) else "CausalLM"
        factory = getattr(transformers, f"AutoModelFor{kind}")
        module, loading = factory.from_pretrained(
            place.source, dtype=getattr(torch, dtype), trust_remote_code=False, **options
        )
    except Exception as error:
        raise ModelError(
            f"model '{place.source}' | cannot be loaded: {first_line(error)}; "
            "its weights are missing or damaged, fetch it again"
        ) from error
    _check_complete(place, loading)
    if place.options:
        _forget_quantization(module)
    loaded: PreTrainedModel = module
    return loaded


def _check_complete(place: _Place, loading: Mapping[str, Any]) -> None:
    # Transformers would go on with random numbers in place of these.
    missing = sorted(loading["missing_keys"])
    # Transformers 4 lists names, 5 lists names and shapes.
    misfits = sorted(k if isinstance(k, str) else k[0] for k in loading["mismatched_keys"])
    if missing or misfits:
        raise ModelError(
            f"model '{place.source}' | lacks {len(missing)} weights {missing[:4]}, and "
            f"{len(misfits)} have another shape than config.json says {misfits[:4]}; expected "
            "a complete checkpoint, fetch it again"
        )


def _forget_quantization(module: Any) -> None:
    # The weights were expanded to floats; with these left, saving is refused.
    module.hf_quantizer = None
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config


def _tokenizer(place: _Place) -> "PreTrainedTokenizerBase":
    transformers = require("transformers", "learn")
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            place.source, trust_remote_code=False, **place.options
        )
    except Exception as error:
        raise ModelError(
            f"model '{place.source}' | has no tokenizer that can be read: "
            f"{first_line(error)}; put its tokenizer.json beside the weights"
        ) from error
    return tokenizer


def check_place(folder: Path, record: str) -> None:
    """Refuses a folder that cannot be written, or where old weights would be lost.

    Args:
        folder: for a checkpoint.
        record: name of the file that tells a checkpoint of ours.

    Raises:
        ModelError: if it is no place for a checkpoint.
    """
    check_writable(folder)
    found = sorted(path.name for path in folder.glob("model*.safetensors*"))
    if found and not (folder / record).exists():
        raise ModelError(
            f"output folder '{folder}' | holds weights of another model, '{found[0]}', and no "
            f"{record}; expected an empty folder or one of an earlier run; choose another"
        )


def save_checkpoint(
    loaded: LoadedModel, folder: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Writes the model and its tokenizer as a Hugging Face folder, whole or not at all.

    Args:
        loaded: the model.
        folder: of its files.
        texts: further files, by their names.

    Raises:
        ModelError: if the folder cannot be written.
    """
    with staged_folder(folder) as stage, quiet():
        try:
            loaded.module.save_pretrained(stage)
            save_companions(loaded, stage)
            for name, text in (texts or {}).items():
                (stage / name).write_text(text, "utf-8")
        except ValueError as error:
            # Some releases of transformers refuse settings that others have written.
            raise ModelError(
                f"model '{loaded.name}' | cannot be saved: {first_line(error)}; mend its "
                "generation_config.json"
            ) from error
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"output folder '{folder}' | cannot be written: {first_line(error)}; free "
                "some space or choose another"
            ) from error


def save_companions(loaded: LoadedModel, folder: Path) -> None:
    """Writes config.json and the files of the tokenizer into `folder`."""
    loaded.tokenizer.save_pretrained(folder)
    loaded.module.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(_with_rope_theta(config), indent=2) + "\n", "utf-8")


def _with_rope_theta(config: Mapping[str, Any]) -> dict[str, Any]:
    # Transformers 4 knows only the top-level key and falls back to 10000 without it;
    # transformers 5 writes only `rope_parameters`.
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or "rope_theta" not in rope:
        return dict(config)
    return {**config, "rope_theta": config.get("rope_theta", rope["rope_theta"])}
