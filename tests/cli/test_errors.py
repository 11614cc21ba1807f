"""Every bad input is one line, exit code 1, and nothing written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Cli, Job
from tests.support import Linear, linear_model, random_weight

Arguments = Callable[[Job], Sequence[str | Path]]


def _pickled(job: Job) -> Sequence[str | Path]:
    path = job.folder / "mask.npz"
    array = np.array([{"a": 1}], dtype=object)
    np.savez(path, allow_pickle=True, **{"a.weight": array, "__meta__": array})
    return (job.model, "--tiles", path, "-o", job.out)


def _text(job: Job) -> Sequence[str | Path]:
    path = job.folder / "text.onnx"
    path.write_text("not a model", "utf-8")
    return (path, *job.command()[1:])


ERRORS: dict[str, tuple[Arguments, str]] = {
    "missing model": (lambda job: ("none.onnx", *job.command()[1:]), "'none.onnx' | is not"),
    "a verb that is none": (lambda job: ("frobnicate", *job.command()[1:]), "'frobnicate' |"),
    "text for a model": (_text, "text.onnx' | is not a readable ONNX"),
    "masks for a model": (lambda job: (job.masks, *job.command()[1:]), "masks.json' | is not"),
    "missing masks": (
        lambda job: (job.model, "--tiles", job.folder / "none.json", "-o", job.out),
        "none.json' | is not a file",
    ),
    "masks not given": (
        lambda job: (job.model, "-o", job.out),
        "tiles | is missing; give --tiles, or see --help",
    ),
    "an architecture and no engine": (
        lambda job: job.command("--sm", "86,89"),
        "sm | is given, and without --engine nothing reads it; give --engine as well",
    ),
    "flags and no engine": (
        lambda job: job.command("--", "--device=1"),
        "flags | is given, and without --engine nothing reads it",
    ),
    "tokens and no target": (
        lambda job: job.command("--tokens", "1"),
        "tokens | is given, and without --target nothing reads it",
    ),
    "tokens and no target, planned": (
        lambda job: ("plan", job.model, "--tiles", job.masks, "--tokens", "1"),
        "tokens | is given, and without --target nothing reads it",
    ),
    "a calibration and nothing to quantise": (
        lambda job: job.command("--quantize-error", "0.3"),
        "quantize-error | is given, and without --quantize nothing reads it",
    ),
    "an empty list": (lambda job: job.command("--sm", ""), "sm | is empty; expected a value"),
    "an empty list by =": (
        lambda job: job.command("--ignore="),
        "ignore | is empty; expected a value",
    ),
    "rounds of what was measured elsewhere": (
        lambda job: ("bench", "--import", job.folder, "--rounds", "99"),
        "rounds | is given with --import, which times nothing; leave one of them out",
    ),
    "a limit without tasks": (
        lambda job: ("eval", job.folder, "--data", "t.txt", "--limit", "3"),
        "limit | is given, and without --tasks nothing reads it",
    ),
    "a folder of tasks without tasks": (
        lambda job: ("eval", job.folder, "--data", "t.txt", "--task-dir", job.folder),
        "task-dir | is given, and no tasks are; give --tasks as well",
    ),
    "a folder that is a file": (
        lambda job: (*job.command()[:-1], job.model),
        "names a file, and -o is a folder here; give one",
    ),
    "a folder called as a model": (
        lambda job: (*job.command()[:-1], job.out / "compiled.onnx"),
        "names a file, and -o is a folder here; give one",
    ),
    "masks that are a model": (
        lambda job: (job.model, "--tiles", job.model, "-o", job.out),
        "end in '.onnx'; expected .json or .npz",
    ),
    "pickled masks": (_pickled, "mask.npz"),
    "bad geometry": (
        lambda job: (job.model, "--tiles", "infer", "--tile", "7x7", "-o", job.out),
        "is 7; expected a multiple of 4",
    ),
    "bad pattern": (lambda job: job.command("--ignore", "re:["), "'re:['"),
    "nothing left": (lambda job: job.command("--ignore", "a.*,b.*"), "leave none of 2 masks"),
    "gain of 2": (lambda job: job.command("--min-gain", "2"), "min-gain | is 2.0"),
    "gain no number": (lambda job: job.command("--min-gain", "nan"), "min-gain | is nan"),
    "gain in percent": (
        lambda job: job.command("--min-gain", "5%"),
        "min-gain | is '5%'; expected a number, as in 0.05",
    ),
    "a compute capability": (
        lambda job: job.command("--sm", "8.6"),
        "sm | is '8.6'; expected a whole number, as in 86 for compute capability 8.6",
    ),
    "a fraction in a list": (lambda job: job.command("--sm", "80,86.9"), "sm | is '86.9'"),
    "a fraction in a range": (
        lambda job: job.command("--batch", "1,2.5,4"),
        "batch | is '2.5'; expected a whole number, as in 1,1,1",
    ),
    "an architecture twice": (
        lambda job: job.command("--sm", "86,89,86"),
        "sm | are (86, 89, 86); expected each once",
    ),
    "a fraction of steps": (
        lambda job: ("learn", job.folder, "--steps", "2.5"),
        "steps | is '2.5'; expected a whole number, as in ",
    ),
    "a number of no default": (
        lambda job: ("cut", job.masks, "--sparsity", "half"),
        "sparsity | is 'half'; expected a number, as in 0.25",
    ),
    "unknown option": (lambda job: job.command("--frobnicate"), "--frobnicate"),
    "unknown choice": (lambda job: job.command("--lowering", "most"), '"most"'),
    "a word too many": (lambda job: job.command("more"), "'more' | is a word too many"),
    "falling range": (lambda job: job.command("--batch", "4,2,1"), "batch | is (4, 2, 1)"),
    "short range": (
        lambda job: job.command("--batch", "4,2"),
        "batch | is '4,2'; expected 3 numbers: least, best and most, as in --batch 1,4,8",
    ),
    "long range": (
        lambda job: ("build", job.model, "--sequence=1,2,3,4"),
        "sequence | is '1,2,3,4'; expected 3 numbers",
    ),
    "one number for a range": (
        lambda job: job.command("--batch", "4"),
        "batch | is '4'; expected 3 numbers: least, best and most",
    ),
    "nothing for a range": (
        lambda job: ("build", job.model, "--sequence"),
        "sequence | is ''; expected 3 numbers",
    ),
    "flags of a verb that has none": (
        lambda job: ("inspect", job.model, "--", "--foo"),
        "inspect | has '--foo' behind `--`, where flags of trtexec stand",
    ),
    "log level": (lambda job: job.command("--log-level", "loud"), '"loud"'),
    "output under a file": (
        lambda job: (job.model, "--tiles", job.masks, "-o", job.masks / "out"),
        "masks.json/out' | cannot be written",
    ),
    "missing config": (lambda job: job.command("--config", "none.toml"), "'none.toml' |"),
    "a dry run without text": (
        lambda job: job.command("--dry-run", "--quantize", "int8"),
        "quantize | is int8, which needs text to calibrate on; give it by --data",
    ),
    "targets and a target": (
        lambda job: ("plan", job.model, "--targets", "a100", "--target", "a100-bf16"),
        "target | is 'a100-bf16', given with --targets, which compares without it",
    ),
    "targets and a budget": (
        lambda job: ("plan", job.model, "--targets", "a100", "--sparsity", "0.2"),
        "sparsity | is 0.2, given with --targets",
    ),
    "targets and shares": (
        lambda job: ("plan", job.model, "--targets", "a100", "--tokens", "16:0.9,256"),
        "tokens | has '16:0.9', and --targets predicts each number of tokens by itself",
    ),
    "a bundle and a folder": (
        lambda job: ("build", job.model, "--bundle", job.folder / "out.tar", "-o", job.out),
        "output | belongs to engines, and with --bundle none is built here",
    ),
    "a bundle as json": (
        lambda job: ("build", job.model, "--bundle", job.folder / "out.tar", "--json"),
        "json | belongs to engines, and with --bundle none is built here",
    ),
    "saving a config as toml": (
        lambda job: job.command("--save-config", job.folder / "s.toml"),
        "s.toml' | is no .json file, and JSON is what is written; name it 's.json'",
    ),
    "sparsity over half": (
        lambda job: ("learn", job.folder, "--sparsity", "0.9"),
        "sparsity | is 0.9; expected a number from 0.0 to 0.5",
    ),
    "window over the text": (
        lambda job: ("verify", job.model, job.model, "--tiles", "infer", "--tokens", "100"),
        "tokens | is 100",
    ),
    "tolerance no number": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks, "--rtol", "nan"),
        "rtol | is nan; expected a number from 0.0 to",
    ),
    "tolerance below nothing": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks, "--atol", "-1"),
        "atol | is -1.0; expected a number from 0.0 to",
    ),
    "no report beside": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks),
        "has no readable report.json beside it",
    ),
    "inspecting no model": (lambda job: ("inspect", _text(job)[0]), "not a readable ONNX"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_writes_nothing(cli: Cli, job: Job, case: str) -> None:
    arguments, complaint = ERRORS[case]
    given = arguments(job)
    before = job.files()
    ran = cli(*given)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("patch-compile: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert complaint in ran.err
    assert "Traceback" not in ran.err
    assert job.files() == before
    assert not job.out.exists()


def test_a_long_error_is_not_wrapped(cli: Cli, job: Job) -> None:
    path = job.folder / ("long" * 60)
    ran = cli(path, "--tiles", job.masks)
    assert ran.err.count("\n") == 1
    assert str(path) in ran.err


def test_a_weight_of_another_checkpoint_is_refused_unless_told(cli: Cli, job: Job) -> None:
    rng = np.random.default_rng(1)
    others = [Linear(name, random_weight(rng, 16, 32)) for name in "ab"]
    linear_model(others, job.model, external=True)
    before = job.files()
    ran = cli(*job.command())
    assert ran.code == 1
    assert "weight 'a.weight' | differs" in ran.err
    assert "--no-check-digests" in ran.err
    assert ran.err.count("\n") == 1
    assert job.files() == before
    assert cli(*job.command("--no-check-digests")).code == 0
    assert (job.out / "compiled.onnx").exists()


def test_a_failed_run_leaves_the_last_result_alone(cli: Cli, job: Job) -> None:
    assert cli(*job.command()).code == 0
    before = job.files()
    assert cli(*job.command("--ignore", "re:[")).code == 1
    assert job.files() == before
