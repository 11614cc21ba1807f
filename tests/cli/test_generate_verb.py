"""What `generate` prints, where, and what it says in one line."""

import json
import os
import pty
import re
import sys
from pathlib import Path
from subprocess import Popen

import pytest

from patch_compile.cli.main import run
from tests.cli.conftest import Cli, refused
from tests.decoders import bigram, encoder, running, tokenizer
from tests.test_generation import chain


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tokenizer(tmp_path, eos_token_id=11)
    bigram(tmp_path / "dense.onnx", chain(1, 2, 3, 4, 1))
    bigram(tmp_path / "compiled.onnx", chain(1, 2, 3, 5, 11))
    return tmp_path


def test_texts_go_to_stdout_and_a_table_follows(cli: Cli, home: Path) -> None:
    models = (home / "dense.onnx", home / "compiled.onnx")
    ran = cli("generate", *models, "--prompt", "w9 w1", "--max-new-tokens", "5")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(
        "> w9 w1\n-- dense.onnx\n w2 w3 w4 w1 w2\n-- compiled.onnx\n w2 w3 w5\nSpeed"
    )
    rows = [re.split(r"  +", line.strip()) for line in ran.out.splitlines()[-2:]]
    assert [row[:4] for row in rows] == [
        ["dense.onnx", "length", "-", "5"],
        ["compiled.onnx", "end", "token 3: 'w5' for 'w4'", "3"],
    ]
    assert ran.err.count("keeps no cache: for every token it reads the whole text") == 2


def test_models_with_a_cache_are_not_told_off(cli: Cli, home: Path) -> None:
    path = running(home / "cached.onnx")
    ran = cli("generate", path, "--prompt", "w1", "--max-new-tokens", "2")
    assert (ran.code, ran.err) == (0, "")


def test_prompts_come_from_a_file_and_the_command_line(cli: Cli, home: Path) -> None:
    prompts = home / "prompts.txt"
    prompts.write_text("w1\n\nw2 w3, with a comma\n", "utf-8")
    model = home / "dense.onnx"
    ran = cli("generate", model, "--prompt", "w4, w1", "--prompts", prompts, "--json")
    assert ran.code == 0, ran.err
    asked = [each["prompt"] for each in json.loads(ran.out)["prompts"]]
    assert asked == ["w4, w1", "w1", "w2 w3, with a comma"]


def test_options_are_those_of_the_recipe_and_can_be_saved(cli: Cli, home: Path) -> None:
    saved = home / "options.json"
    options = ["--prompt", "w1", "--temperature", "0.7", "--seed", "5", "--ignore-end"]
    first = cli("--save-config", saved, "generate", home / "dense.onnx", *options, "--json")
    assert first.code == 0, first.err
    again = cli("--config", saved, "generate", home / "dense.onnx", "--json")
    texts = [json.loads(ran.out)["prompts"][0]["answers"][0]["text"] for ran in (first, again)]
    assert texts[0] == texts[1]
    assert json.loads(again.out)["recipe"] == json.loads(first.out)["recipe"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "prompt | is missing; give --prompt TEXT or --prompts FILE"),
        (["--prompts", "none.txt"], "text 'none.txt' | cannot be read"),
        (["--prompt", "w1", "--tokenizer", "nowhere"], "tokenizer 'nowhere' | is not a file"),
        (["--prompt", "w1", "--greedy", "--top-p", "0.5"], "greedy | takes the likeliest"),
        (["--prompt", "w1", "--chat"], "has no chat template"),
        (["--prompt", ""], "prompt '' | has no tokens"),
    ],
)
def test_bad_input_is_told_in_one_line(
    cli: Cli, home: Path, options: list[str], problem: str
) -> None:
    ran = cli("generate", home / "dense.onnx", *options)
    refused(ran, problem)


def test_encoder_is_told_in_one_line(cli: Cli, home: Path) -> None:
    ran = cli("generate", encoder(home / "e.onnx"), "--prompt", "w1")
    refused(ran, "is no causal language model")


def on_terminal(home: Path, columns: int) -> str:
    """Runs both models in a process of its own whose stdout is a terminal this wide."""
    inside, outside = pty.openpty()
    models = [str(home / name) for name in ("dense.onnx", "compiled.onnx")]
    command = [sys.executable, "-m", "patch_compile", "generate", *models]
    command += ["--prompt", "w1", "--prompt", "w2", "--max-new-tokens", "4"]
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "30", "TERM": "xterm"}
    with Popen(command, stdout=outside, stderr=outside, env=environment) as process:
        os.close(outside)
        text = b""
        try:
            while chunk := os.read(inside, 4096):
                text += chunk
        except OSError:
            # Linux says so when the last writer has gone.
            pass
        assert process.wait() == 0, text
    os.close(inside)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode()).replace("\r", "\n")


def test_a_wide_terminal_shows_them_side_by_side(home: Path) -> None:
    text = on_terminal(home, 100)
    assert re.search(r"dense\.onnx +compiled\.onnx", text)
    assert re.search(r"w2 w3 w4 w1 +w2 w3 w5", text)
    assert text.count("> w1") == text.count("> w2") == 1
    # The growing form is gone; each prompt's last form stays once, in order.
    assert text.rindex("> w1") < text.rindex("> w2") < text.rindex("Speed")


def test_a_narrow_terminal_shows_one_after_the_other(home: Path) -> None:
    text = on_terminal(home, 60)
    assert "-- dense.onnx" in text
    assert not re.search(r"dense\.onnx +compiled\.onnx", text)


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--max-new-tokens", "--temperature", "--prompts", "onnxruntime", "export"):
        assert word in text
