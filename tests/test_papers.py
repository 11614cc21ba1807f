"""Later verbs add to the report of a compile, and the page follows."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError
from patch_compile.page.render import page_of
from patch_compile.papers import add_to_report, draw_report
from tests.support import contents, said, three_linears


@pytest.fixture
def compiled(tmp_path: Path, rng: np.random.Generator) -> Path:
    path, masks, _ = three_linears(tmp_path, rng)
    return compile_model(path, masks).save(tmp_path / "out")


def read(compiled: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(compiled.with_name("report.json").read_text("utf-8"))
    return report


def test_the_page_is_that_of_the_report(compiled: Path) -> None:
    report, page = (compiled.with_name(f"report.{kind}") for kind in ("json", "html"))
    assert page.read_text("utf-8") == page_of(report.read_text("utf-8"))


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_no_number_is_null_in_the_report(compiled: Path) -> None:
    path = compiled.with_name("report.json")
    # An older release wrote this.
    old = {**read(compiled), "before": {"rtol": math.nan}}
    path.write_text(json.dumps(old), "utf-8")
    add_to_report(compiled, lambda report: {**report, "after": [math.inf, 1.5]})
    report = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    assert report["before"] == {"rtol": None}
    assert report["after"] == [None, 1.5]


def test_a_compile_writes_json_whatever_its_masks_say(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    known = replace(masks, made_by={"loss": math.nan})
    report = compile_model(path, known).report
    found = json.loads(report.to_json(), parse_constant=_refuse)
    assert found["made_by"] == {"loss": None}


def test_what_is_added_is_in_the_report_and_on_the_page(compiled: Path) -> None:
    before = contents(compiled.parent)
    add_to_report(
        compiled, lambda report: {**report, "left_alone": {"a new name": "a reason"}}
    )
    assert read(compiled) == {
        **json.loads(before["report.json"]),
        "left_alone": {"a new name": "a reason"},
    }
    page = compiled.with_name("report.html").read_text("utf-8")
    assert "a new name" in page
    assert page == page_of(compiled.with_name("report.json").read_text("utf-8"))
    changed = {
        name for name, data in contents(compiled.parent).items() if data != before[name]
    }
    assert changed == {"report.json", "report.html"}


def test_other_models_have_no_report_to_add_to(compiled: Path) -> None:
    before = contents(compiled.parent)
    add_to_report(compiled.with_name("other.onnx"), lambda _: {})
    assert contents(compiled.parent) == before
    compiled.with_name("report.json").unlink()
    add_to_report(compiled, lambda _: {})
    assert not compiled.with_name("report.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 3}'])
def test_a_damaged_report_stays_as_it_is(compiled: Path, text: str) -> None:
    compiled.with_name("report.json").write_text(text, "utf-8")
    before = contents(compiled.parent)
    with pytest.raises(ModelError) as caught:
        add_to_report(compiled, lambda report: {**report, "engines": []})
    assert "report.json" in said(caught)
    assert contents(compiled.parent) == before


def test_verbs_at_the_same_time_lose_nothing(compiled: Path) -> None:
    def note(number: int) -> None:
        def add(report: dict[str, Any]) -> dict[str, Any]:
            return {**report, "left_alone": {**report["left_alone"], f"w{number}": "why"}}

        add_to_report(compiled, add)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    assert set(read(compiled)["left_alone"]) == {f"w{number}" for number in range(40)}


def test_a_page_is_drawn_again_from_folder_or_file(compiled: Path, tmp_path: Path) -> None:
    page = compiled.with_name("report.html")
    drawn = page.read_bytes()
    page.unlink()
    assert draw_report(compiled.parent) == page
    assert page.read_bytes() == drawn
    other = draw_report(compiled.with_name("report.json"), tmp_path / "new" / "other.html")
    assert other.read_bytes() == drawn


def test_a_missing_report_is_told_in_one_line(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none" / "report.json"):
        with pytest.raises(ModelError) as caught:
            draw_report(source)
        assert "cannot be read" in said(caught)
