"""The verb `generate`: parses, calls the API, prints while the text grows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.live import Live
from rich.table import Table

from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.tables import plain_table
from patch_compile.errors import RecipeError
from patch_compile.generation import (
    Answer,
    Generated,
    Generation,
    Listener,
    open_generation,
)
from patch_compile.recipe import GenerateRecipe
from patch_compile.runtimes.perplexity import read_text

__all__ = ["generate"]

_GENERATE = GenerateRecipe()
# Narrower columns are a pain to read; models then follow one another.
_NARROWEST = 36


def generate(
    model: Path,
    /,
    *compiled: Path,
    prompt: tuple[str, ...] = (),
    prompts: Path | None = None,
    tokenizer: Path | None = None,
    recipe: Annotated[GenerateRecipe, Parameter(name="*")] = _GENERATE,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Let MODEL, and COMPILED beside it, go on from a prompt, on onnxruntime's CPU provider.

    What each writes appears as it is chosen, in columns where the terminal is wide enough;
    then tokens a second, and where COMPILED first chose another token than MODEL did. Models
    of `export --with-past` read every token once; one without a cache reads the whole text
    again for every token, which is slower and is said. All models are in memory at once.

        patch-compile generate model.onnx out/compiled.onnx --prompt "Once upon a time"

    Args:
        model: a decoder, .onnx: of `export`, optimum or onnxruntime-genai's builder.
        compiled: more of them, of the same tokenizer.
        prompt: text to go on from; may be given several times.
        prompts: file of prompts (UTF-8), one a line.
        tokenizer: folder of tokenizer.json and config.json; by default MODEL's.
        json_: print texts, tokens and times as JSON, once all is done.
    """
    given = [*prompt, *_lines(prompts)]
    if not given:
        raise RecipeError("prompt | is missing; give --prompt TEXT or --prompts FILE")
    with progress_bar() as progress:
        opened = open_generation(
            [model, *compiled], given, recipe, tokenizer=tokenizer, progress=progress
        )
    for label, cached in opened.cached.items():
        if not cached:
            say(
                f"{label} keeps no cache: for every token it reads the whole text again, "
                "which is slower; export it with --with-past"
            )
    if json_:
        out.print(json.dumps(opened.run().to_json(), indent=1, allow_nan=False))
        return
    with _display(opened) as listen:
        found = opened.run(listen)
    out.print(_table(found))


def _lines(path: Path | None) -> list[str]:
    lines = [] if path is None else read_text(path).splitlines()
    return [line for line in lines if line.strip()]


@contextmanager
def _display(opened: Generation) -> Iterator[Listener]:
    """Yields a listener that shows each piece of text where it belongs."""
    prompts, labels = [prompt for prompt, _ in opened.prompts], list(opened.decoders)
    if len(labels) > 1 and out.is_terminal and out.width >= _NARROWEST * len(labels):
        # What overflows the screen while it grows is printed whole in the end.
        with Live(console=out, transient=True, refresh_per_second=8) as live:
            columns = _Columns(prompts, labels, live)
            yield columns
            columns.finish()
        return
    yield _Sequence(prompts, labels)
    out.print()


@dataclass
class _Sequence:
    """Texts appear one below the other."""

    prompts: list[str]
    labels: list[str]
    place: tuple[int, int] | None = None

    def __call__(self, prompt: int, model: int, piece: str) -> None:
        if self.place != (prompt, model):
            self._begin(prompt, model)
        out.print(piece, end="")

    def _begin(self, prompt: int, model: int) -> None:
        if self.place is not None:
            out.print()
        if self.place is None or self.place[0] != prompt:
            out.print(f"> {self.prompts[prompt]}")
        out.print(f"-- {self.labels[model]}")
        self.place = (prompt, model)


@dataclass
class _Columns:
    """Texts grow side by side; those of a prompt that is done stay above."""

    prompts: list[str]
    labels: list[str]
    live: Live
    prompt: int | None = None
    texts: list[str] = field(default_factory=list)

    def __call__(self, prompt: int, model: int, piece: str) -> None:
        if prompt != self.prompt:
            self.finish()
            self.prompt, self.texts = prompt, [""] * len(self.labels)
        self.texts[model] += piece
        self.live.update(_side_by_side(self.labels, self.texts))

    def finish(self) -> None:
        """Prints the last prompt and its texts for good."""
        if self.prompt is None:
            return
        self.live.update(Table.grid())
        out.print(f"> {self.prompts[self.prompt]}")
        out.print(_side_by_side(self.labels, self.texts))


def _side_by_side(labels: list[str], texts: list[str]) -> Table:
    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for label in labels:
        table.add_column(label, ratio=1, overflow="fold", no_wrap=False)
    table.add_row(*texts)
    return table


def _table(found: Generated) -> Table:
    several = ["prompt"] if len(found.prompts) > 1 else []
    columns = ["stopped by", "first difference", "tokens", "tokens/s", "first token s"]
    table = plain_table("Speed", "model", *several, *columns, right=3)
    for number, asked in enumerate(found.prompts, start=1):
        for index, answer in enumerate(asked.answers):
            difference = _difference(answer) if index else "-"
            table.add_row(
                answer.model,
                *(str(number) for _ in several),
                answer.stopped,
                difference,
                str(len(answer.tokens)),
                "-" if answer.tokens_per_second is None else f"{answer.tokens_per_second:.1f}",
                f"{answer.prompt_seconds:.3f}",
            )
    return table


def _difference(answer: Answer) -> str:
    found = answer.difference
    if found is None:
        return "none"
    here, there = (repr(text) if text else "the end" for text in (found.here, found.first))
    return f"token {found.at + 1}: {here} for {there}"
