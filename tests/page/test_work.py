"""Sums by hand: a model of two layers, an expert layer, and a head without one."""

from typing import Any

import pytest

from patch_compile.page.names import alike, breakable, label, place
from patch_compile.page.work import by_kind, chart, reasons, work


def weight(name: str, *pieces: tuple[str, int, int], reason: str = "") -> dict[str, Any]:
    macs = sum(n * k for _, n, k in pieces)
    kept = sum(n * k * (0.5 if role == "sparse24" else 1) for role, n, k in pieces)
    return {
        "weight": name,
        "masks": [name],
        "pieces": [{"role": role, "shape": [n, k]} for role, n, k in pieces],
        "macs": macs,
        "macs_kept": kept,
        "eligible": sum(role == "sparse24" for role, _, _ in pieces),
        "reason": reason,
    }


WEIGHTS = [
    weight("model.layers.0.mlp.up_proj.weight", ("sparse24", 8, 4)),
    weight("model.layers.2.mlp.up_proj.weight", ("dense", 2, 4), ("sparse24", 6, 4)),
    weight("model.layers.2.self_attn.q_proj.weight", ("dense", 4, 4), reason="saves 1.0%"),
    weight("lm_head.weight", ("dense", 1, 4), reason="saves -2%"),
]


def test_a_2_4_product_counts_half() -> None:
    total = work("all", WEIGHTS)
    assert (total.weights, total.before, total.dense, total.sparse) == (4, 84, 28, 28)
    assert total.kept == pytest.approx(56 / 84)


def test_kinds_are_summed_and_the_largest_comes_first() -> None:
    found = [(kind.label, kind.weights, kind.before, kind.kept) for kind in by_kind(WEIGHTS)]
    assert found == [
        ("mlp.up_proj", 2, 64, 36 / 64),
        ("self_attn.q_proj", 1, 16, 1.0),
        ("lm_head", 1, 4, 1.0),
    ]


def test_the_chart_has_a_cell_for_each_layer_and_kind() -> None:
    found = chart(WEIGHTS)
    assert found is not None
    assert (found.kinds, found.layers) == (("mlp.up_proj", "self_attn.q_proj"), (0, 2))
    cells = {
        (cell.x, cell.y): (cell.first, cell.layer, cell.work.kept) for cell in found.cells
    }
    assert cells == {(0, 0): (0, 0, 0.5), (1, 0): (1, 2, 20 / 32), (1, 1): (2, 2, 1.0)}


def test_experts_of_a_layer_share_a_cell() -> None:
    names = [f"layers.{layer}.experts.{e}.w1" for layer in (0, 1) for e in range(3)]
    found = chart([weight(name, ("dense", 4, 4)) for name in names])
    assert found is not None
    assert found.kinds == ("experts.*.w1",)
    assert [(cell.first, cell.work.weights) for cell in found.cells] == [(0, 3), (3, 3)]


def test_a_model_without_layers_has_no_chart() -> None:
    flat = [weight(f"fc{number}.weight", ("dense", 4, 4)) for number in range(40)]
    assert chart(flat) is None
    assert by_kind(flat) == []
    assert len(by_kind(flat[:5])) == 5


def test_many_layers_stay_within_the_page() -> None:
    for layers, pitch in ((2, 16), (68, 16), (100, 10), (400, 3)):
        found = chart([weight(f"h.{n}.fc.weight", ("dense", 4, 4)) for n in range(layers)])
        assert found is not None
        assert found.pitch == pitch


def test_reasons_that_differ_in_numbers_are_one() -> None:
    assert [(r.text, r.weights, r.share) for r in reasons(WEIGHTS)] == [
        ("saves -2% to 1.0%", 2, pytest.approx(20 / 84))
    ]
    assert alike("best cut ('columns') saves -0.25%, below 5.0%") == (
        "best cut ('columns') saves …%, below …%"
    )


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.31.mlp.up_proj.weight", 31, "mlp.up_proj"),
        ("/model/layers.7/attn/qkv_proj/MatMul", 7, "attn/qkv_proj/MatMul"),
        ("transformer.h.3.mlp.experts.12.w1.weight", 3, "mlp.experts.*.w1"),
        ("7.weight", None, "7"),
        ("onnx::MatMul_8767", None, "onnx::MatMul_8767"),
        ("", None, ""),
    ],
)
def test_a_name_tells_its_place(name: str, layer: int | None, kind: str) -> None:
    assert place({"masks": [], "weight": name}) == (layer, kind)


def test_fused_weights_are_called_by_all_their_masks() -> None:
    fused = {"weight": "val_3", "masks": ["h.1.q.weight", "h.1.k.weight"]}
    assert label(fused) == "h.1.q.weight + h.1.k.weight"
    assert place(fused) == (1, "q + k")


def test_a_breakable_name_is_the_name() -> None:
    assert breakable("a.b/<c>") == "a.<wbr>b/<wbr>&lt;c&gt;"
