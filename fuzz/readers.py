"""Every reader of a file that a stranger may have written, and how it is reached.

A case is a folder of valid files with one of them damaged. It ends well in one of two ways:
the command line did its work, or it ended with code 1 and one line.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from zipfile import BadZipFile

import onnx
from google.protobuf.message import DecodeError

from fuzz.decoding import DECODER, LOG, PART, make_decoder, measure_all
from fuzz.guard import watched
from fuzz.home import make_home, quiet_run
from fuzz.learning import GGUF, HF, STEP, encode, load, make_learned, resume
from fuzz.mutations import (
    Damage,
    Pick,
    damage_bytes,
    damage_external,
    damage_gguf,
    damage_json,
    damage_lines,
    damage_onnx,
    damage_safetensors,
    damage_yaml,
    damage_zip,
)
from patch_compile.bench.baselines import make_baselines
from patch_compile.bench.predictions import read_predictions
from patch_compile.errors import PatchCompileError
from patch_compile.evaluation.local_tasks import find_task
from patch_compile.expected import masked_tensors
from patch_compile.learn.documents import read_file
from patch_compile.parsing import DAMAGE
from patch_compile.passes.sites import STAMP
from patch_compile.runtimes.engine_file import check_engine
from patch_compile.runtimes.gpu import Gpu
from patch_compile.runtimes.providers import Declared
from patch_compile.targets.table import Table

__all__ = ["READERS", "Outcome", "Reader", "damaged", "make_whole_home", "run_case"]

Outcome = Literal["read", "refused"]
Act = Callable[[Path], Outcome]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: for people.
        file: that is damaged, in the folder of valid ones.
        damages: ways to damage it.
        act: reads the folder as a user would.
        settle: makes other files of the folder agree with the damaged one, where a check
            would otherwise hide what lies behind it.
    """

    name: str
    file: str
    damages: tuple[Damage, ...]
    act: Act
    settle: Callable[[Path], None] | None = None


# What comes out of a damage that meets what an earlier one left.
_UNREADABLE = (
    *(BadZipFile, zlib.error, struct.error, DecodeError),
    *(NotImplementedError, RecursionError),
)


def make_whole_home(folder: Path) -> Path:
    """A folder with a valid file for every reader."""
    make_home(folder)
    make_learned(folder)
    make_decoder(folder)
    return folder


def damaged(reader: Reader, clean: bytes, pick: Pick) -> bytes:
    """Damages a file once or twice; what no longer parses is damaged as bytes."""
    data = clean
    for _ in range(1 + pick(2)):
        damage = reader.damages[pick(len(reader.damages))]
        try:
            data = damage(data, pick)
        except (*DAMAGE, *_UNREADABLE):
            data = damage_bytes(data, pick)
    return data


def run_case(reader: Reader, home: Path, data: bytes) -> Outcome:
    """Puts `data` in the place of the reader's file in a copy of `home`, and reads it.

    Raises:
        Forbidden: if a file outside of the copy is opened, or code is run.
        AssertionError: if an error is no single line, or a refused case leaves output.
        Exception: whatever else comes out of the reader, which is a defect.
    """
    with TemporaryDirectory(prefix="patch-compile-case-") as place:
        folder = Path(place) / "home"
        shutil.copytree(home, folder)
        (folder / reader.file).write_bytes(data)
        if reader.settle is not None:
            reader.settle(folder)
        with watched(folder):
            return reader.act(folder)


def _cli(*arguments: str) -> Act:
    """A command line; `@` before an argument makes it a file of the folder."""

    def act(folder: Path) -> Outcome:
        given = [str(folder / a[1:]) if a.startswith("@") else a for a in arguments]
        code, out, err = quiet_run(*given)
        if code == 0:
            return "read"
        assert code == 1, (code, err)
        last = err.splitlines()[-1]
        assert last.startswith("patch-compile: "), err
        assert "Traceback" not in out + err
        assert not (folder / "new").exists() or not any((folder / "new").iterdir())
        return "refused"

    return act


def _call(read: Callable[[Path], object]) -> Act:
    """A function of the library."""

    def act(folder: Path) -> Outcome:
        try:
            read(folder)
        except PatchCompileError as error:
            said = str(error)
        else:
            return "read"
        assert " | " in said, said
        return "refused"

    return act


def _sign(folder: Path) -> None:
    """Puts the digest of the arrays into masks.json, so that they are read at all."""
    index = json.loads((folder / "masks.json").read_text("utf-8"))
    index["data_sha256"] = sha256((folder / "masks.safetensors").read_bytes()).hexdigest()
    (folder / "masks.json").write_text(json.dumps(index), "utf-8")


def _table(folder: Path) -> object:
    text = (folder / "table.json").read_text("utf-8", "replace")
    return Table.from_json(text)


def _declared(folder: Path) -> object:
    return Declared.of(folder / "model.onnx")


def _engine(folder: Path) -> object:
    gpu = Gpu("NVIDIA A100", 80, "550.54", 81920)
    return check_engine(folder / "m.engine", folder / "model.onnx", version="10.9.0", gpu=gpu)


def _expected(folder: Path) -> object:
    """All that `verify` reads before a runtime comes in."""
    files = folder / "model.onnx", folder / "out" / "compiled.onnx", folder / "masks.json"
    tensors, _ = masked_tensors(*files)
    return [tensor.keep() for tensor in tensors]


def _restoring(folder: Path) -> None:
    """Only for `restore` the plan is read; a model that knows another choice is refused."""
    path = folder / "out" / "report.json"
    report = json.loads(path.read_text("utf-8"))
    report["recipe"]["restore"] = True
    path.write_text(json.dumps(report), "utf-8")
    compiled = path.with_name("compiled.onnx")
    model = onnx.load(compiled, load_external_data=False)
    kept = [entry for entry in model.metadata_props if entry.key != STAMP]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, compiled)


def _benched(folder: Path) -> object:
    """All that `bench` reads of a report."""
    compiled = folder / "out" / "compiled.onnx"
    made = make_baselines(folder / "model.onnx", compiled, ("all-2:4",), folder / "new")
    return read_predictions(compiled), made


def _text(name: str) -> Callable[[Path], object]:
    return lambda folder: list(read_file(folder / name))


def _tasks(folder: Path) -> object:
    task = find_task("piqa", folder / "tasks")
    assert task is not None
    return [(task.text(row), task.target(row), task.choices(row)) for row in task.rows]


_JSON = (damage_json, damage_bytes)
_COMPILE = ("@model.onnx", "--tiles", "@masks.json", "-o", "@new")
_CUT = ("--sparsity", "0.1", "-o", "@new/masks.json")


def _npz(name: str) -> Act:
    return _cli("@model.onnx", "--tiles", f"@{name}", "--tile", "band:8", "-o", "@new")


_RESULTS = _cli("results", "@results", "--json")

_INSPECT = "inspect", "@model.onnx", "--json"


def _results(file: str, damage: Damage) -> Reader:
    return Reader(f"results/{file}", f"results/{file}", (damage, damage_bytes), _RESULTS)


def _generate(file: str, *damages: Damage, folder: str = DECODER) -> Reader:
    act = _cli(
        *("generate", f"@{folder}/model.onnx", "--prompts", f"@{folder}/prompts.txt"),
        *("--chat", "--max-new-tokens", "3", "--json"),
    )
    path = f"{folder}/{file}"
    return Reader(f"generate, {file}", path, (*damages, damage_bytes), act)


def _checkpoint(file: str, *damages: Damage) -> Reader:
    return Reader(f"HF {file}", f"{HF}/{file}", (*damages,), _call(load(HF)))


def _config(file: str, *damages: Damage) -> Reader:
    act = _cli("--config", f"@{file}", *_COMPILE, "--dry-run")
    return Reader(file, file, (*damages, damage_bytes), act)


READERS: tuple[Reader, ...] = (
    Reader("masks.json", "masks.json", _JSON, _cli(*_COMPILE)),
    Reader("masks.json, cut", "masks.json", _JSON, _cli("cut", "@masks.json", *_CUT)),
    Reader(
        "masks.safetensors", "masks.safetensors", (damage_safetensors,), _cli(*_COMPILE), _sign
    ),
    Reader("mask.npz (PATCH)", "mask.npz", (damage_zip,), _npz("mask.npz")),
    Reader(
        "mask_compressed.npz (MaskLLM)",
        "mask_compressed.npz",
        (damage_zip,),
        _npz("mask_compressed.npz"),
    ),
    Reader("model.onnx, compiled", "model.onnx", (damage_onnx,), _cli(*_COMPILE)),
    Reader("model.onnx, inspected", "model.onnx", (damage_onnx,), _cli(*_INSPECT)),
    Reader("model.onnx, declared", "model.onnx", (damage_onnx,), _call(_declared)),
    Reader(
        "external data descriptors",
        "outside.onnx",
        (damage_external, damage_onnx),
        _cli("@outside.onnx", *_COMPILE[1:]),
    ),
    Reader(
        "external data",
        "outside.onnx.data",
        (damage_bytes,),
        _cli("@outside.onnx", *_COMPILE[1:]),
    ),
    _results("manifest.json", damage_json),
    _results("gpu.csv", damage_lines),
    _results("trtexec.txt", damage_lines),
    _results("compiled/build.log", damage_lines),
    _results("compiled/layers.json", damage_json),
    _results("compiled/profile.json", damage_json),
    _results("compiled/times.1.json", damage_json),
    _results("compiled/status", damage_lines),
    _results("compiled/bytes", damage_lines),
    Reader("m.engine.json", "m.engine.json", _JSON, _call(_engine)),
    Reader("plan.json, verified", "out/plan.json", _JSON, _call(_expected), _restoring),
    Reader("report.json, verified", "out/report.json", _JSON, _call(_expected)),
    Reader("report.json, benched", "out/report.json", _JSON, _call(_benched)),
    Reader("report.json, drawn", "out/report.json", _JSON, _cli("report", "@out")),
    Reader(
        "report.json, joined",
        "out/report.json",
        _JSON,
        _cli("results", "@results", "--into", "@out/compiled.onnx"),
    ),
    Reader("latency table", "table.json", _JSON, _call(_table)),
    _config("config.json", damage_json),
    _config("config.yaml", damage_lines, damage_yaml),
    _config("config.toml", damage_lines),
    Reader("text.txt", "text.txt", (damage_bytes,), _call(_text("text.txt"))),
    Reader("text.jsonl", "text.jsonl", _JSON, _call(_text("text.jsonl"))),
    Reader("run/state.json", "run/state.json", _JSON, _call(resume)),
    Reader("run/log.csv", "run/log.csv", (damage_lines,), _call(resume)),
    Reader(f"run/{STEP}", f"run/{STEP}", (damage_safetensors,), _call(resume)),
    Reader("tokenizer.json", "tokenizer.json", _JSON, _call(encode)),
    _generate("model.onnx", damage_onnx),
    _generate("tokenizer.json", damage_json),
    _generate("config.json", damage_json),
    _generate("generation_config.json", damage_json),
    _generate("tokenizer_config.json", damage_json),
    _generate("chat_template.jinja", damage_lines, folder="templated"),
    _generate("prompts.txt", damage_lines),
    Reader("calibrate, trtexec's log", LOG, (damage_lines, damage_bytes), _call(measure_all)),
    Reader("calibrate, half done", PART, _JSON, _call(measure_all)),
    _checkpoint("config.json", damage_json),
    _checkpoint("model.safetensors", damage_safetensors),
    _checkpoint("tokenizer.json", damage_json),
    _checkpoint("tokenizer_config.json", damage_json),
    Reader("GGUF", GGUF, (damage_bytes, damage_gguf), _call(load(GGUF))),
    Reader("task file", "tasks/piqa.jsonl", (damage_lines,), _call(_tasks)),
)
