"""What `generate` and `calibrate` read beside a model, and how they read it."""

import json
from pathlib import Path

from patch_compile.calibration import calibrate
from patch_compile.recipe import CalibrateRecipe
from patch_compile.runtimes.gemm import Timed, timed
from patch_compile.runtimes.gpu import Gpu
from patch_compile.runtimes.trtexec import read_evidence
from tests.decoders import VOCABULARY, bigram, tokenizer
from tests.runtimes import published

__all__ = ["DECODER", "LOG", "PART", "make_decoder", "measure_all"]

DECODER, LOG, PART = "decoder", "gemm.log", "gpu.part.json"

_GPU = Gpu("NVIDIA RTX A6000", 86, "550.54", 49140)
_RECIPE = CalibrateRecipe(tokens=(16, 128))
_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
{{ message['role'] }} {{ message['content'] }}{% endfor %}
{% if add_generation_prompt %} w3 {% endif %}
"""


def make_decoder(folder: Path) -> None:
    """Adds a decoder with its tokenizer, a log of trtexec, and measurements half done."""
    place = folder / DECODER
    bigram(place / "model.onnx")
    tokenizer(place, eos_token_id=VOCABULARY - 1, max_position_embeddings=64)
    files = {
        f"{DECODER}/generation_config.json": json.dumps({"eos_token_id": [10, 11]}),
        f"{DECODER}/tokenizer_config.json": json.dumps(
            {"bos_token": "w1", "eos_token": {"content": "w2"}, "chat_template": _TEMPLATE}
        ),
        f"{DECODER}/prompts.txt": "w1 w2\nw3\n",
        LOG: f"&&&& RUNNING TensorRT.trtexec [TensorRT v100500]\n{published.ISSUE_4177}",
        PART: json.dumps(
            {
                "of": {"device": _GPU.name, "driver": _GPU.driver, "dtype": _RECIPE.dtype},
                "rows": [[16, 16, 32, 5.0, 4.0], [128, 16, 32, 6.0, 4.5]],
            }
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "templated").mkdir()
    for path in sorted(place.iterdir()):
        (folder / "templated" / path.name).write_bytes(path.read_bytes())
    (folder / "templated" / "chat_template.jinja").write_text(_TEMPLATE, "utf-8")


def measure_all(folder: Path) -> object:
    """Goes on with measurements half done, where trtexec's log tells each new time."""
    log = folder / LOG

    def measure(m: int, n: int, k: int, *, sparse24: bool) -> Timed:
        found = read_evidence(log, folder / "none", requested=sparse24, symbols={})
        return timed(found, (m, n, k))

    return calibrate(
        folder / "model.onnx", folder / "gpu.json", _RECIPE, measure=measure, gpu=_GPU
    )
