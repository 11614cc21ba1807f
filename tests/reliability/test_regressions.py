"""What damaged files once broke; `test_readers` found most of it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz.home import make_home
from patch_compile.cli.arguments import config_reader
from patch_compile.errors import ModelError, RecipeError
from patch_compile.parsing import parse_json
from patch_compile.results import import_results
from patch_compile.runtimes.gpu import read_gpus
from patch_compile.runtimes.layer_info import read_layers, read_profile, read_times
from patch_compile.runtimes.trtexec_log import read_performance, read_sparsity, read_version
from patch_compile.targets.table import Table
from tests.support import said

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("fuzz") / "home")


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, '{"a":' * 99 + "1" + "}" * 99])
def test_deep_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json(text)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}', '[["\\ud83d"]]'])
def test_half_of_a_surrogate_pair_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        parse_json(text)


def test_json_is_read_as_ever() -> None:
    text = '{"a": [1, null, "ö\\ud83d\\ude00"], "b": {"c": NaN}}'
    assert parse_json(text, constants=str) == json.loads(text, parse_constant=str)


MANIFESTS: list[Edit] = [
    lambda m: m["models"][0].pop("sha256"),
    lambda m: m["models"][0].update(symbols={"batch": "many"}),
    lambda m: m["models"][0].update(symbols={"batch": float("nan")}),
    lambda m: m["models"][0].update(pieces=[{"node": "a"}]),
    lambda m: m["models"][0]["pieces"][0].pop("shape"),
    lambda m: m["models"][0]["pieces"][0].update(shape=[1, 2, 3]),
    lambda m: m["models"][0].update(nodes=float("inf")),
    lambda m: m.update(models=3),
    lambda m: m.update(recipe=None),
]


@pytest.mark.parametrize("edit", MANIFESTS, ids=range(len(MANIFESTS)))
def test_manifest_of_another_form_is_refused(home: Path, tmp_path: Path, edit: Edit) -> None:
    manifest = json.loads((home / "results" / "manifest.json").read_text("utf-8"))
    edit(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ModelError, match=r"hold no readable manifest\.json"):
        import_results(tmp_path)


@pytest.mark.parametrize("name", ["gpu.csv", "compiled/build.log", "compiled"])
def test_results_with_a_link_are_refused(home: Path, tmp_path: Path, name: str) -> None:
    manifest = (home / "results" / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").write_text(manifest, "utf-8")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to("/etc")
    with pytest.raises(ModelError) as caught:
        import_results(tmp_path)
    assert f"hold a symbolic link, '{Path(name).name}'" in said(caught)


def test_times_of_other_names_are_no_rounds(home: Path, tmp_path: Path) -> None:
    (tmp_path / "compiled").mkdir()
    for name in ("manifest.json", "compiled/times.1.json"):
        (tmp_path / name).write_bytes((home / "results" / name).read_bytes())
    (tmp_path / "compiled" / "times.x.json").write_text("[]", "utf-8")
    (tmp_path / "compiled" / "bytes").write_text("²", "utf-8")
    model = import_results(tmp_path).models[0]
    assert len(model.rounds) == 1
    assert model.bytes is None


@pytest.mark.parametrize("value", ['"x"', "null", "[]", "true", "NaN", "1e999", "-1", "1e40"])
def test_times_that_are_no_milliseconds_are_refused(value: str) -> None:
    with pytest.raises(ModelError, match="expected milliseconds"):
        read_times(f'[{{"computeMs": {value}}}]')
    with pytest.raises(ModelError, match="expected milliseconds"):
        read_profile(f'[{{"name": "a", "averageMs": {value}}}]')


def test_layers_are_names_or_objects() -> None:
    with pytest.raises(ModelError, match="has no list of Layers"):
        read_layers('{"Layers": [1]}')


def test_long_metadata_takes_linear_time() -> None:
    text = json.dumps({"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: x" * 200_000}]})
    started = time.process_time()
    read_layers(text)
    # A pattern that starts anew at each mark takes hours.
    assert time.process_time() - started < 20


@pytest.mark.parametrize("memory", ["x", "1.2.3", "inf", "", "9" * 5000, "-5"])
def test_line_that_names_no_gpu_is_skipped(memory: str) -> None:
    assert read_gpus(f"NVIDIA A100, 8.0, 550.54, {memory}\n") == ()


@pytest.mark.parametrize("number", ["1.2.3", "1e999", "9" * 5000, "-", "nan"])
def test_log_with_strange_numbers_is_no_measurement(number: str) -> None:
    found = read_performance([f"[I] Engine built in {number} sec."])
    assert found is None or found.build is None or found.build < 1e120
    words = "layer(s) using sparse tactics"
    assert read_sparsity([f"(Sparsity) Chose {'9' * 5000} {words}: a"]).chose is None
    assert read_version(f"TensorRT.trtexec [TensorRT v{'9' * 5000}]") is None


@pytest.mark.parametrize(
    "text",
    [
        "tile: 2001-01-01\n",
        "1: 2\n",
        "ignore: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a0: &a [x]\na1: &b [" + "*a, " * 9000 + "]\na2: [" + "*b, " * 9000 + "]\n",
        "x: !!binary aGk=\n",
    ],
)
def test_config_of_strange_values_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        config_reader(path, ())
    assert "holds" in said(caught)


def test_config_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(RecipeError, match="has 1048577 bytes; expected 1048576 at most"):
        config_reader(tmp_path / "options.toml", ())


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.update(gpu={}),
        lambda t: t.update(dtype=[]),
        lambda t: t.update(points=[1]),
        lambda t: t.update(points={"a": [[1, 2, 3, 4, 10**400]]}),
        lambda t: t.update(points={"a": [[1, 2, 3, 4, float("inf")]]}),
        lambda t: t.update(parameters={"dense": None}),
    ],
    ids=range(6),
)
def test_latency_table_of_another_form_is_refused(home: Path, edit: Edit) -> None:
    table = json.loads((home / "table.json").read_text("utf-8"))
    edit(table)
    with pytest.raises(ModelError) as caught:
        Table.from_json(json.dumps(table))
    assert said(caught).startswith("table")
