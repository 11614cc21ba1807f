"""Exports that several tests share; torch is loaded when one of them runs."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    exports = pytest.importorskip("tests.passes.exports", reason="needs torch, transformers")
    return exports.export_dynamo(tmp_path_factory.mktemp("dynamo") / "model.onnx")


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Any:
    exports = pytest.importorskip("tests.passes.exports", reason="needs torch, transformers")
    return exports.export_torchscript(tmp_path_factory.mktemp("script") / "model.onnx")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    exports = pytest.importorskip("tests.passes.exports", reason="needs torch, transformers")
    return exports.export_gpt2(tmp_path_factory.mktemp("gpt2") / "model.onnx")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    exports = pytest.importorskip("tests.passes.exports", reason="needs torch, transformers")
    return exports.export_opt(tmp_path_factory.mktemp("opt") / "model.onnx")
