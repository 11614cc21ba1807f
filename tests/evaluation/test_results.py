import json
import math

from patch_compile.evaluation.results import Evaluation, Metric, PerplexityResult, TaskResult


def test_json_holds_everything_and_no_nan() -> None:
    found = Evaluation(
        "m.onnx",
        0.25,
        PerplexityResult(math.inf, 14, 2, 8, 8, 3),
        {"piqa": TaskResult(1, {"acc": Metric(1.0, None), "acc_norm": Metric(math.nan, 0.5)})},
        {"a.weight": "no place"},
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {
        "model": "m.onnx",
        "sparsity": 0.25,
        "perplexity": {
            "value": "inf",
            "predictions": 14,
            "windows": 2,
            "window": 8,
            "stride": 8,
            "dropped": 3,
        },
        "tasks": {
            "piqa": {
                "questions": 1,
                "metrics": {
                    "acc": {"value": 1.0, "stderr": None},
                    "acc_norm": {"value": "nan", "stderr": 0.5},
                },
            }
        },
        "unapplied": {"a.weight": "no place"},
    }
