"""Draws report.html from the text of report.json: a pure function, without a clock.

The page carries its style and script, and forbids itself every request: its policy allows
those two by their hashes and nothing else.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from patch_compile.errors import ModelError
from patch_compile.page import formats
from patch_compile.page.commands import commands
from patch_compile.page.kernels import verdicts
from patch_compile.page.measured import comparisons, measurement
from patch_compile.page.names import alike, breakable, label
from patch_compile.page.summary import asked, figures, sentences, stages, target, title
from patch_compile.page.times import Times, gains, predicted
from patch_compile.page.work import by_kind, chart, reasons, work
from patch_compile.parsing import DAMAGE, parse_json

__all__ = ["page_of"]

_VERSION = 1


def page_of(report: str) -> str:
    """Returns the page of a report.

    Args:
        report: the text of a report.json, of this release or an older one.

    Raises:
        ModelError: if it is no report.
    """
    try:
        facts = parse_json(report, constants=lambda _: None)
        return _render(facts)
    except (*DAMAGE, TemplateError) as error:
        raise ModelError(
            f"report.json | cannot be drawn: {type(error).__name__} {error}; expected version "
            f"{_VERSION} as patch-compile writes it; compile again"
        ) from error


def _render(report: Mapping[str, Any]) -> str:
    if report["version"] != _VERSION:
        raise ValueError(f"version {report['version']}")
    pages = _environment()
    style, script = (_source(pages, name) for name in ("report.css", "report.js"))
    weights = report["weights"]
    times = predicted(weights)
    return pages.get_template("report.html").render(
        report=report,
        facts=_facts(report, times),
        style=style,
        script=script,
        policy=_policy(style, script),
        title=title(report),
        asked=asked(report),
        sentences=sentences(report),
        figures=figures(report),
        stages=stages(report),
        everything=work("all", weights),
        kinds=by_kind(weights),
        chart=chart(weights),
        reasons=reasons(weights),
        times=times,
        gains=[gains(weight, times) for weight in weights],
        target=target(report),
        comparisons=comparisons(report, times, target(report)),
        commands=commands(report),
    )


def _facts(report: Mapping[str, Any], times: Sequence[Times]) -> dict[str, Any]:
    """What the script on the page works with."""
    weights = [
        {
            **weight,
            "index": index,
            "label": label(weight),
            "alike": alike(weight["reason"]),
            "told": told,
            "gains": gains(weight, times),
        }
        for index, (weight, told) in enumerate(
            zip(report["weights"], verdicts(report), strict=True)
        )
    ]
    value, how = measurement(report)
    return {
        "weights": weights,
        "engines": [entry["engine"] for entry in report["engines"]],
        "measured": f"the model as a whole, {value} {how}"
        if report.get("measured")
        else value,
    }


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("patch_compile.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    for name in set(formats.__all__) - {"UNKNOWN", "known"}:
        pages.filters[name] = getattr(formats, name)
    pages.filters |= {"alike": alike, "breakable": breakable, "label": label}
    return pages


def _source(pages: Environment, name: str) -> Markup:
    """Reads a file of the package that goes into the page as it is."""
    assert pages.loader is not None
    return Markup(pages.loader.get_source(pages, name)[0])


def _policy(style: str, script: str) -> str:
    return f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
