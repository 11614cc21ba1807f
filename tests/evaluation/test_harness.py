"""lm-evaluation-harness asks the questions; those that need it skip where it is missing."""

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.evaluation.answers import Answers
from patch_compile.evaluation.harness import load_tasks, run_tasks
from patch_compile.evaluation.scorers import Scorer

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: the extra `eval`"
)
# Its dependencies warn of each other when they are first imported.
pytestmark = pytest.mark.filterwarnings("default")

LETTERS = "\n _abcdefghijklmnopqrstuvwxyzQA:?."


def _encode(text: str, special: bool) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def _score(tokens: NDArray[np.int64]) -> NDArray[Any]:
    table = np.random.default_rng(3).standard_normal((len(LETTERS), len(LETTERS)))
    return np.cumsum(table[tokens], axis=1)


SCORER = Scorer(_score, _encode)


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven questions of each form; their choices differ much in length."""
    rng = np.random.default_rng(0)

    def word(length: int) -> str:
        return "".join(rng.choice(list("abcdefghij"), length))

    ask = [
        {
            "query": f"Question: {word(5)}?\n",
            "choices": [word(n) for n in rng.integers(1, 9, 3)],
            "gold": int(rng.integers(3)),
        }
        for _ in range(7)
    ]
    contexts = [
        {"context_options": [word(5), word(6)], "continuation": word(4), "gold": i % 2}
        for i in range(7)
    ]
    _write(tmp_path, "ask", ask)
    _write(tmp_path, "contexts", contexts)
    return tmp_path


@dataclass(frozen=True)
class Ask:
    args: tuple[str, str]


def _right(pairs: list[tuple[str, str]], gold: int, lengths: list[int]) -> float:
    likelihoods = [ll for ll, _ in Answers(SCORER).loglikelihood([Ask(p) for p in pairs])]
    best = np.argmax(np.array(likelihoods) / lengths)
    return float(best == gold)


def _by_hand(path: Path, metric: str) -> tuple[float, float]:
    """Accuracy and its standard error, sample deviation over sqrt(n), from the file."""
    right = []
    for row in map(json.loads, path.read_text("utf-8").split("\n")):
        if "query" in row:
            pairs = [(f"{row['query']}Answer:", f" {choice}") for choice in row["choices"]]
            long = [len(choice) for choice in row["choices"]]
        else:
            pairs = [(c, f" {row['continuation']}") for c in row["context_options"]]
            long = [1, 1]
        lengths = long if metric == "acc_norm" else [1] * len(pairs)
        right.append(_right(pairs, row["gold"], lengths))
    return float(np.mean(right)), float(np.std(right, ddof=1) / sqrt(len(right)))


@needs_harness
def test_accuracies_are_those_counted_by_hand(folder: Path) -> None:
    states: list[tuple[int, int, str]] = []
    tasks = load_tasks(["ask", "contexts"], folder)
    found = run_tasks(SCORER, tasks, None, lambda *state: states.append(state))
    assert list(found) == ["ask", "contexts"]
    assert {name: sorted(task.metrics) for name, task in found.items()} == {
        "ask": ["acc", "acc_norm"],
        "contexts": ["acc"],
    }
    for name, task in found.items():
        assert task.questions == 7
        for metric, number in task.metrics.items():
            expected = _by_hand(folder / f"{name}.jsonl", metric)
            # The same counts; a mean and a root of them in float64.
            assert (number.value, number.stderr) == pytest.approx(expected, rel=1e-12)
    numbers = {number.value for task in found.values() for number in task.metrics.values()}
    assert len(numbers) > 1
    assert states[-1] == (7 * 3 + 7 * 2, 7 * 3 + 7 * 2, "answers")


@needs_harness
def test_a_limit_takes_the_first_questions(folder: Path) -> None:
    (found,) = run_tasks(SCORER, load_tasks(["ask", "ask"], folder), 1).values()
    assert found.questions == 1
    # One question has no standard error.
    assert found.metrics["acc"].stderr is None


@needs_harness
def test_the_questions_are_asked_without_examples(folder: Path) -> None:
    tasks = load_tasks(["ask"], folder)
    run_tasks(SCORER, tasks, 1)
    (context, continuation), *_ = (asked.args for asked in tasks["ask"].instances)
    row = json.loads((folder / "ask.jsonl").read_text("utf-8").split("\n")[0])
    assert context == f"{row['query']}Answer:"
    assert continuation == f" {row['choices'][0]}"


@needs_harness
def test_a_group_has_a_score_of_its_own(folder: Path) -> None:
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "ask.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
    }
    of_all = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [of_all]}
    for config in ({"task": "one", **task}, {"task": "two", **task}, group):
        name = config.get("group", config["task"])
        (folder / f"{name}.yaml").write_text(json.dumps(config), "utf-8")
    tasks = manager(include_path=str(folder)).load_task_or_group(["both"])
    found = run_tasks(SCORER, tasks, None)
    assert sorted(found) == ["both", "one", "two"]
    assert found["both"].questions == 14
    assert found["both"].metrics["acc"].value == found["one"].metrics["acc"].value


@needs_harness
def test_a_task_that_needs_another_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("lm_eval.tasks")

    def missing(_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'langdetect'")

    monkeypatch.setattr(harness, "get_task_dict", missing)
    with pytest.raises(RecipeError, match=r"^task 'ifeval' \| cannot be had .* 'langdetect'"):
        load_tasks(["ifeval"], None)


@needs_harness
def test_unknown_tasks_are_told(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"^task 'no_such_task' \| is no file of '.*', and"):
        load_tasks(["ask", "no_such_task"], folder)


def test_a_missing_harness_is_named_with_its_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'lm-eval>=[0-9.]+'$"):
        load_tasks(["ask"], folder)


def test_a_malformed_file_shows_before_the_harness_is_missed(tmp_path: Path) -> None:
    (tmp_path / "ask.jsonl").write_text("{", "utf-8")
    with pytest.raises(RecipeError, match="line 1 is no question"):
        load_tasks(["ask"], tmp_path)
