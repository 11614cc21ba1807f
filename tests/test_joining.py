"""Every 2:4 product gets one of three words, and `unknown` never becomes a number."""

import re
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.joining import Joined, PieceSite, join
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import CompileRecipe
from patch_compile.runtimes.evidence import EngineLayer, Evidence, Sparsity
from patch_compile.runtimes.layer_info import read_layers
from patch_compile.runtimes.trtexec_log import read_sparsity
from tests.runtimes import published
from tests.support import three_linears

SPARSE = (
    "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage3_sptensor16x8x32"
)
DENSE = "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage4_tensor16x8x16"
TOLD = Evidence("trtexec", version="10.9.0", device="A6000", sm=86)
LEAD = ("batch", "sequence")


def _site(name: str, **changes: object) -> PieceSite:
    site = PieceSite(
        f"{name}/patch/sparse24_1",
        f"{name}.weight",
        "sparse24",
        (4096, 4096),
        "float16",
        True,
        LEAD,
    )
    return replace(site, **changes)  # type: ignore[arg-type]  # fields of PieceSite


def _layer(node: str, tactic: str, *others: str, **more: object) -> EngineLayer:
    nodes = (node, *others)
    layer = EngineLayer(" + ".join(nodes), "gemm", tactic, nodes)
    return replace(layer, **more)  # type: ignore[arg-type]  # fields of EngineLayer


def _only(found: Joined) -> tuple[str, str]:
    ((piece,),) = (weight.pieces for weight in found.weights)
    return piece.verdict, piece.reason


def test_the_inspectors_kernel_decides() -> None:
    a, b = _site("a"), _site("b")
    layers = (_layer(a.node, SPARSE, "act"), _layer(b.node, DENSE))
    found = join([a, b], 9, replace(TOLD, layers=layers))
    first, second = found.weights
    assert (first.chosen, second.chosen, found.chosen) == (1, 0, 1)
    assert first.pieces[0].fused == ("act",)
    assert first.pieces[0].tactic == SPARSE
    assert second.pieces[0].reason == "timed slower than dense"
    assert (found.nodes, found.layers, found.dense_layers) == (9, 2, None)


def test_the_logs_names_decide_where_no_kernel_is_named() -> None:
    sites = [_site(name) for name in "abc"]
    names = {site.weight[0]: site.node for site in sites}
    log = published.VERBOSE_NEW.format(**names).splitlines()
    found = join(sites, 3, replace(TOLD, sparsity=read_sparsity(log)))
    assert [weight.pieces[0].verdict for weight in found.weights] == [
        "not chosen",
        "chosen",
        "not chosen",
    ]
    assert found.layers is None


def test_a_name_that_myelin_numbered_is_still_the_node_s() -> None:
    site = _site("a")
    sparsity = Sparsity(found=1, chose=1, chosen=(f"{site.node}_myl0_3",))
    assert _only(join([site], 1, replace(TOLD, sparsity=sparsity))) == ("chosen", "")


def test_silence_is_unknown() -> None:
    found = join([_site("a")], 1, TOLD)
    assert _only(found) == (
        "unknown",
        "neither log nor inspector told; build verbosely with trtexec or tensorrt",
    )
    assert found.chosen == "unknown"
    assert found.to_json()["chosen"] == "unknown"


def test_one_unknown_product_makes_the_sum_unknown() -> None:
    a, b = _site("a"), _site("b")
    found = join([a, b], 2, replace(TOLD, layers=(_layer(a.node, SPARSE),)))
    assert (found.weights[0].chosen, found.weights[1].unknown) == (1, 1)
    assert found.chosen == "unknown"


def test_a_model_without_sparse_products_chose_nothing_that_is_known() -> None:
    assert join([_site("a", role="dense")], 1, TOLD).chosen == "unknown"


def test_rtx_says_why_it_is_silent() -> None:
    verdict, reason = _only(join([_site("a")], 1, replace(TOLD, backend="tensorrt_rtx")))
    assert (verdict, reason) == (
        "unknown",
        "TensorRT-RTX tells nothing of kernels without a GPU",
    )


def test_a_count_of_none_settles_all() -> None:
    log = published.JETSON_NEW.splitlines()
    assert (
        _only(join([_site("a")], 1, replace(TOLD, sparsity=read_sparsity(log))))[0]
        == "not chosen"
    )


def test_what_was_not_requested_is_not_chosen_though_nobody_told() -> None:
    found = join([_site("a")], 1, replace(TOLD, requested=False))
    assert _only(found) == ("not chosen", "sparse kernels were not requested")


def test_a_count_without_names_settles_nothing() -> None:
    some = Sparsity(found=3, chose=2)
    assert _only(join([_site("a")], 1, replace(TOLD, sparsity=some)))[0] == "unknown"


def test_myelins_own_names_settle_nothing() -> None:
    hidden = Sparsity(1, ("__myl_Fc_myl2_7",), 1, ("__myl_Fc_myl2_7",))
    assert _only(join([_site("a")], 1, replace(TOLD, sparsity=hidden)))[0] == "unknown"


def test_myelins_names_are_looked_up_in_the_layers() -> None:
    site = _site("a")
    layer = EngineLayer("__myl_Fc_myl2_7", "fusion", "", (site.node, "gelu"))
    hidden = Sparsity(1, ("__myl_Fc_myl2_7",), 1, ("__myl_Fc_myl2_7",))
    found = join([site], 1, replace(TOLD, sparsity=hidden, layers=(layer,)))
    assert _only(found) == ("chosen", "")


def test_a_region_of_myelin_swallows() -> None:
    layers = read_layers(published.EXPLORER_NAMES)
    verdict, reason = _only(join([_site("a")], 1, replace(TOLD, layers=layers)))
    assert (verdict, reason) == (
        "unknown",
        "swallowed by Myelin, whose region names no kernels",
    )


def test_sparse_weights_are_no_sparse_kernel() -> None:
    """NVIDIA/TensorRT#4694: the inspector's HasSparseWeights tells of weights only."""
    site = _site("a")
    for tactic, verdict in ((DENSE, "not chosen"), ("", "unknown")):
        layer = _layer(site.node, tactic, sparse_weights=True)
        assert _only(join([site], 1, replace(TOLD, layers=(layer,))))[0] == verdict


def test_the_kernel_of_a_reformat_is_not_the_products() -> None:
    site = _site("a")
    reformat = EngineLayer("Reformatting CopyNode", "Reformat", "copy_kernel", (site.node,))
    for layers in (
        (reformat, _layer(site.node, SPARSE)),
        (_layer(site.node, SPARSE), reformat),
    ):
        assert _only(join([site], 1, replace(TOLD, layers=layers)))[0] == "chosen"
    assert _only(join([site], 1, replace(TOLD, layers=(reformat,))))[0] == "unknown"


def test_the_layer_that_computes_is_named_before_one_that_moves_data() -> None:
    site = _site("a")
    moved = EngineLayer("moved", "Reformat", "copy_kernel", (site.node,))
    fused = EngineLayer("fused", "fusion", "", (site.node, "gelu"))
    for layers in ((moved, fused), (fused, moved)):
        found = join([site], 1, replace(TOLD, layers=layers))
        assert found.weights[0].pieces[0].layer == "fused"


def test_a_fused_kernel_that_names_no_product_settles_nothing() -> None:
    site = _site("a")
    layer = _layer(site.node, "__myl_CastConvertAdd_0x1", "add", kind="fusion")
    assert _only(join([site], 1, replace(TOLD, layers=(layer,))))[0] == "unknown"


def test_a_sparse_kernel_counts_whatever_else_carries_the_name() -> None:
    site = _site("a")
    sparse = EngineLayer("x", "conv", "sm80_xmma_fprop_avdt_sparse_int8int8", (site.node,))
    for layers in ((sparse, _layer(site.node, DENSE)), (_layer(site.node, DENSE), sparse)):
        assert _only(join([site], 1, replace(TOLD, layers=layers)))[0] == "chosen"


def test_layers_of_the_dense_engine_are_counted_beside() -> None:
    dense = replace(TOLD, layers=(_layer("x", DENSE),))
    found = join([_site("a")], 7, replace(TOLD, layers=(_layer("a", DENSE),) * 3), dense)
    assert (found.nodes, found.layers, found.dense_layers) == (7, 3, 1)


@pytest.mark.parametrize(
    ("site", "told", "reason"),
    [
        (_site("a"), replace(TOLD, requested=False), r"^sparse kernels were not requested$"),
        (_site("a", eligible=False), TOLD, r"^not 2:4 as stored \(float16\)"),
        (_site("a"), replace(TOLD, sm=75), r"^SM 75 has no sparse tensor cores"),
        (_site("a", dtype="float"), TOLD, r"^float has no sparse kernels; compile an fp16"),
        (_site("a", dtype="float8e4m3fn"), TOLD, r"^SM 86 has no fp8"),
        (_site("a", shape=(192, 4096)), TOLD, r"slower than dense: narrow, 192 x 4096"),
        (
            _site("a"),
            replace(TOLD, symbols=(("batch", 2), ("sequence", 8))),
            r"timed at 16 tok",
        ),
    ],
)
def test_reasons_are_told(site: PieceSite, told: Evidence, reason: str) -> None:
    layers = (_layer(site.node, DENSE),)
    found = join([site], 1, replace(told, layers=layers))
    verdict, said = _only(found)
    assert verdict == "not chosen"
    assert re.search(reason, said), said


def test_enough_tokens_are_no_reason() -> None:
    site = _site("a")
    told = replace(
        TOLD, symbols=(("batch", 1), ("sequence", 512)), layers=(_layer(site.node, DENSE),)
    )
    assert _only(join([site], 1, told))[1] == "timed slower than dense"


def test_tensorrt_may_not_find_it_eligible() -> None:
    site = _site("a")
    told = Sparsity(1, ("other",), 1, ("other",))
    verdict, reason = _only(join([site], 1, replace(TOLD, sparsity=told)))
    assert (verdict, reason) == ("not chosen", "TensorRT does not list it as eligible")


@pytest.mark.parametrize(
    ("output", "told"), [("Half", True), ("Row major Int8 format", False)]
)
def test_an_int8_product_needs_an_int8_epilogue(output: str, told: bool) -> None:
    site = _site("a", dtype="int8")
    layer = _layer(site.node, DENSE, outputs=(output,))
    reason = _only(join([site], 1, replace(TOLD, layers=(layer,))))[1]
    assert ("its output is not int8" in reason) is told


@pytest.mark.parametrize(
    ("lead", "tokens"),
    [
        (("batch", "sequence"), 6),
        ((4, "sequence"), 12),
        ((5,), 5),
        (("batch", "other"), None),
        ((None,), None),
        (None, None),
        ((), 1),
    ],
)
def test_tokens_follow_the_shape_of_x(
    lead: tuple[int | str | None, ...] | None, tokens: int | None
) -> None:
    assert _site("a", lead=lead).tokens({"batch": 2, "sequence": 3}) == tokens


def test_pieces_of_a_compiled_file_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(lowering="columns")
    path = compile_model(model, masks, recipe).save(tmp_path / "out")
    sites, nodes = find_pieces(path)
    named = {node.name for node in onnx.load(path).graph.node}
    assert {site.node for site in sites} <= named
    assert nodes == len(named)
    sparse = [site for site in sites if site.role == "sparse24"]
    assert [site.weight for site in sparse] == ["c.weight", "a.weight", "b.weight"]
    assert {(s.shape, s.dtype, s.eligible, s.lead) for s in sparse} == {
        ((16, 48), "float", True, LEAD)
    }


def test_a_piece_whose_zeros_were_filled_is_not_eligible(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(lowering="columns")
    path = compile_model(model, masks, recipe).save(tmp_path / "out")
    proto = onnx.load(path)
    weight = next(t for t in proto.graph.initializer if "sparse24" in t.name)
    weight.CopyFrom(numpy_helper.from_array(np.ones(weight.dims, np.float32), weight.name))
    onnx.save(proto, tmp_path / "filled.onnx")
    sites, _ = find_pieces(tmp_path / "filled.onnx")
    assert [s.eligible for s in sites if s.role == "sparse24"] == [False, True, True]


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_integers_behind_a_dequantizer_are_looked_at(
    tmp_path: Path, kind: str, filled: bool
) -> None:
    weight = np.tile(np.array([1, 0, -2, 0], np.int8), (8, 4)).T  # (K, N) = (16, 8)
    if filled:
        weight[1, 0] = 3
    if kind == "int8":
        stored = numpy_helper.from_array(weight, "w")
    else:
        data = weight.astype(ml_dtypes.float8_e4m3fn)
        # A negative zero is a zero in floats, and would be -128 in integers.
        data[3, 0] = -0.0
        stored = helper.make_tensor(
            "w", TensorProto.FLOAT8E4M3FN, (16, 8), data.tobytes(), raw=True
        )
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    node = helper.make_node("MatMul", ["x", "dq"], ["y"], name="m/patch/sparse24_0")
    for key, value in (("role", "sparse24"), ("weight", "m.weight"), ("lowering", "whole")):
        node.metadata_props.add(key=f"patch_compile.{key}", value=value)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "scale"], ["dq"]), node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", 8])],
        [stored, scale],
    )
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "q.onnx")
    ((site,), nodes) = find_pieces(tmp_path / "q.onnx")
    assert (site.eligible, site.shape, nodes) == (not filled, (8, 16), 2)
    assert site.dtype.startswith(kind)
