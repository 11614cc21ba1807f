"""Every mask finds its one weight, by name or by content, or says why not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.passes.binding import Binding, bind, in_features
from patch_compile.passes.sites import Refusal, Site
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import FLOATS, masks_of, random_mask, random_weight, said

Q, K, V = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
QKV = "model.layers.0.attn.qkv_proj.weight"


def site(
    name: str,
    weight: NDArray[Any],
    *parameters: str,
    transposed: bool = True,
) -> Site:
    array = np.ascontiguousarray(weight.T) if transposed else weight
    return Site(name, StoredWeight(ir.tensor(array), transposed), parameters or (name,))


def weight_of(seed: int, n: int = 8, k: int = 16, dtype: str = "float32") -> NDArray[Any]:
    return random_weight(np.random.default_rng(seed), n, k, dtype)


def mask_of(name: str, weight: NDArray[Any], *, digests: bool = True) -> WeightMask:
    rng = np.random.default_rng(0)
    return random_mask(rng, name, weight, "8x8", with_digests=digests)


def bound(sites: Sequence[Site], *masks: WeightMask) -> list[Binding]:
    bindings, left_alone = bind(sites, [], masks_of(*masks))
    assert left_alone == {}
    return bindings


def refusal(sites: Sequence[Site], *masks: WeightMask) -> str:
    with pytest.raises(MaskError) as caught:
        bind(sites, [], masks_of(*masks))
    return said(caught)


def names(binding: Binding) -> list[str]:
    return [mask.name for mask in binding.masks]


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (Q, Q),
        ("model.layers.0.attn.q_proj.weight", Q),
        (Q, "model.layers.0.attn.q_proj.weight"),
        ("h.0.self_attention.dense.weight", "h.0.self_attn.dense.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("m.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("fc1.up", "fc1.up.weight"),
    ],
)
def test_names_that_mean_the_same_parameter_bind(parameter: str, name: str) -> None:
    weight = weight_of(0)
    mask = mask_of(name, weight, digests=False)
    (binding,) = bound([site("val_1", weight, parameter)], mask)
    assert (names(binding), binding.how) == ([name], "name")


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.10.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.0.mlp.up_proj.weight", "up_proj.weight"),
        ("encoder.fc.weight", "decoder.fc.weight"),
    ],
)
def test_names_that_only_look_alike_do_not_bind(parameter: str, name: str) -> None:
    weight = weight_of(0)
    text = refusal([site("val_1", weight, parameter)], mask_of(name, weight, digests=False))
    assert text.startswith(f"mask '{name}' | fits no weight of the model")


def test_unbound_mask_lists_the_nearest_weights() -> None:
    sites = [
        site(f"val_{layer}", weight_of(layer), f"model.layers.{layer}.mlp.up_proj.weight")
        for layer in range(12)
    ]
    mask = mask_of("model.layers.12.mlp.up_proj.weight", weight_of(99))
    text = refusal(sites, mask)
    assert "(1 such masks); nearest weights: model.layers." in text
    # Its own name, and the three that differ from it by one character.
    assert text.count("mlp.up_proj.weight") == 4
    assert "model.layers.11.mlp.up_proj.weight" in text
    assert "give the masks made for this model, or leave these out (--ignore)" in text


def test_model_without_weights_says_there_are_none() -> None:
    assert "nearest weights: none at all" in refusal([], mask_of("a", weight_of(0)))


def test_mask_that_fits_two_weights_is_refused() -> None:
    weight = weight_of(0)
    sites = [
        site("one", weight, "encoder.layers.0.fc.weight"),
        site("two", weight_of(1), "decoder.layers.0.fc.weight"),
    ]
    assert refusal(sites, mask_of("layers.0.fc.weight", weight, digests=False)) == (
        "mask 'layers.0.fc.weight' | fits 2 weights by name: ['one', 'two']; expected one; "
        "rename the mask or ignore it (--ignore)"
    )


def test_weight_that_fits_two_masks_is_refused() -> None:
    weight = weight_of(0)
    masks = [mask_of(f"{side}.layers.0.fc.weight", weight) for side in ("encoder", "decoder")]
    assert refusal([site("w", weight, "layers.0.fc.weight")], *masks) == (
        "weight 'layers.0.fc' | fits 2 masks by name: ['decoder.layers.0.fc.weight', "
        "'encoder.layers.0.fc.weight']; expected one; ignore the others (--ignore)"
    )


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (16, 8)])
def test_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    mask = mask_of("a.fc.weight", weight_of(0, *shape))
    assert refusal([site("w", weight_of(0), "a.fc.weight")], mask) == (
        f"weight 'w' | has shape (8, 16) (N, K), its mask {shape} ('a.fc.weight'); the masks "
        "belong to another model"
    )


def test_bindings_come_in_graph_order_whatever_found_them() -> None:
    weights = [weight_of(seed) for seed in range(4)]
    sites = [
        site("a", weights[0]),
        site("b", weights[1], "block.b.weight"),
        site("c", weights[2]),
        site("d", weights[3], "block.d.weight"),
    ]
    masks = [
        mask_of("block.d.weight", weights[3], digests=False),
        mask_of("lost.c.weight", weights[2]),
        mask_of("block.b.weight", weights[1], digests=False),
        mask_of("lost.a.weight", weights[0]),
    ]
    found = bound(sites, *masks)
    assert [(b.site.name, b.how) for b in found] == [
        ("a", "digest"),
        ("b", "name"),
        ("c", "digest"),
        ("d", "name"),
    ]


# Fused weights: parts stacked along N, (8, 16), (4, 16) and (4, 16) rows.


def fused() -> tuple[Site, dict[str, WeightMask]]:
    parts = {Q: weight_of(0, 8), K: weight_of(1, 4), V: weight_of(2, 4)}
    whole = np.concatenate(list(parts.values()))
    return site("qkv", whole, QKV), {name: mask_of(name, w) for name, w in parts.items()}


def test_masks_of_the_parts_bind_to_the_fused_weight_in_its_order() -> None:
    one, masks = fused()
    (binding,) = bound([one], masks[V], masks[Q], masks[K])
    assert names(binding) == [Q, K, V]


def test_gate_and_up_bind_to_their_fused_weight() -> None:
    gate, up = weight_of(0), weight_of(1)
    one = site("w", np.concatenate([gate, up]), "model.layers.0.mlp.gate_up_proj.weight")
    (binding,) = bound(
        [one],
        mask_of("model.layers.0.mlp.up_proj.weight", up),
        mask_of("model.layers.0.mlp.gate_proj.weight", gate),
    )
    assert [name.split(".")[-2] for name in names(binding)] == ["gate_proj", "up_proj"]


def test_mask_of_a_natively_fused_parameter_binds_to_it_whole() -> None:
    """Phi-3 has one `qkv_proj` parameter."""
    one, _ = fused()
    whole = one.weight.bits().view(np.float32).T
    (binding,) = bound([one], mask_of("model.layers.0.self_attn.qkv_proj.weight", whole))
    assert names(binding) == ["model.layers.0.self_attn.qkv_proj.weight"]


@pytest.mark.parametrize(
    ("given", "heights"),
    [([Q], [8, 8]), ([V], [12, 4]), ([Q, K], [8, 4, 4]), ([K, V], [8, 4, 4])],
)
def test_parts_without_a_mask_are_kept_whole(given: list[str], heights: list[int]) -> None:
    one, masks = fused()
    (binding,) = bound([one], *(masks[name] for name in given))
    assert [mask.shape[0] for mask in binding.masks] == heights
    for mask in binding.masks:
        assert mask.name in given or (mask.dense.all() and mask.zeros() == 0)


ENC, DEC = "enc.proj.weight", "dec.proj.weight"


def test_equal_masks_of_a_weight_that_two_layers_share_bind_as_one() -> None:
    weight = weight_of(0)
    masks = masks_of(mask_of(ENC, weight), mask_of(DEC, weight))
    (binding,), left_alone = bind([site("w", weight, ENC, DEC)], [], masks)
    assert names(binding) == [ENC]
    assert left_alone == {DEC: f"equal to mask '{ENC}' of the same weight"}


def test_other_masks_of_a_weight_that_two_layers_share_are_refused() -> None:
    weight = weight_of(0)
    other = random_mask(np.random.default_rng(1), DEC, weight, "4x4")
    text = refusal([site("w", weight, ENC, DEC)], mask_of(ENC, weight), other)
    assert text.startswith(
        f"masks '{ENC}' and '{DEC}' | differ, and weight 'w' stands for both"
    )


def test_part_whose_place_is_unknown_is_refused() -> None:
    one, masks = fused()
    assert refusal([one], masks[K]) == (
        "weight 'qkv' | has no masks for ['model.layers.0.attn.q_proj', "
        "'model.layers.0.attn.v_proj']; give them all"
    )


def test_parts_that_are_too_tall_are_refused() -> None:
    one, masks = fused()
    tall = mask_of(K, weight_of(1, 8))
    assert refusal([one], masks[Q], tall) == "weight 'qkv' | has 16 rows, its masks 16"
    assert "its mask (8, 16) + (8, 16) + (4, 16)" in refusal([one], masks[Q], tall, masks[V])


def test_parts_of_another_width_are_refused() -> None:
    one, masks = fused()
    wide = mask_of(K, weight_of(1, 4, 32))
    assert "its mask (8, 16) + (4, 32) + (4, 16)" in refusal([one], masks[Q], wide, masks[V])


# Content.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [False, True])
def test_nameless_weight_is_found_by_its_content(dtype: str, transposed: bool) -> None:
    weight = weight_of(0)
    mask = mask_of("model.fc.weight", weight)
    cast = weight.astype(FLOATS[dtype][0])
    sites = [
        site("onnx::MatMul_1", weight_of(1).astype(cast.dtype), transposed=transposed),
        site("onnx::MatMul_2", cast, transposed=transposed),
    ]
    (binding,) = bound(sites, mask)
    assert (binding.site.name, binding.how) == ("onnx::MatMul_2", "digest")


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_stacked_weights_are_found_by_their_slices(
    heights: list[int], transposed: bool, random: Any
) -> None:
    parts = [weight_of(10 + i, height) for i, height in enumerate(heights)]
    masks = [mask_of(f"part{i}.weight", part) for i, part in enumerate(parts)]
    one = site("val_1", np.concatenate(parts), transposed=transposed)
    shuffled = random.sample(masks, len(masks))
    (binding,) = bound([one], *shuffled)
    assert names(binding) == [mask.name for mask in masks]


def test_weight_of_which_only_a_part_has_a_mask_is_not_guessed() -> None:
    parts = [weight_of(0), weight_of(1)]
    one = site("val_1", np.concatenate(parts))
    assert "fits no weight" in refusal([one], mask_of("a.weight", parts[0]))


def test_one_changed_bit_leaves_a_nameless_weight_unfound() -> None:
    weight = weight_of(0)
    mask = mask_of("a.fc.weight", weight)
    weight.view(np.uint32)[2, 3] ^= 1
    assert "by metadata, name or content" in refusal([site("val_1", weight)], mask)


def test_masks_of_equal_content_are_not_guessed() -> None:
    weight = weight_of(0)
    masks = [mask_of("a.fc.weight", weight), mask_of("b.fc.weight", weight)]
    assert refusal([site("val_1", weight)], *masks) == (
        "weight 'val_1' | has the content of ['a.fc.weight', 'b.fc.weight']; expected one"
    )


def test_weights_of_equal_content_are_not_guessed() -> None:
    weight = weight_of(0)
    sites = [site("val_1", weight), site("val_2", weight_of(1)), site("val_3", weight)]
    assert refusal(sites, mask_of("a.fc.weight", weight)) == (
        "mask 'a.fc.weight' | fits 2 weights by content: ['val_1', 'val_3']; expected one; "
        "rename the mask or ignore it (--ignore)"
    )


def test_name_goes_before_content() -> None:
    """A mask whose weight was retrained binds by its name; the digest check is another's."""
    weight = weight_of(0)
    sites = [site("val_1", weight), site("val_2", weight_of(1), "a.fc.weight")]
    (binding,) = bound(sites, mask_of("a.fc.weight", weight))
    assert (binding.site.name, binding.how) == ("val_2", "name")


# Weights that were refused.


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (Q, Q),
        (QKV, K),
        (QKV, "model.layers.0.self_attn.qkv_proj.weight"),
        (f"{Q}+{K}+{V}", V),
        ("layers.0.self_attn.q_proj.weight", Q),
    ],
)
def test_mask_of_a_refused_weight_is_left_alone_with_the_reason(
    parameter: str, name: str
) -> None:
    refused = [Refusal("w_Q4", ("w_Q4", parameter), "element type UINT8 is no float")]
    bindings, left_alone = bind([], refused, masks_of(mask_of(name, weight_of(0))))
    assert bindings == []
    assert left_alone == {name: "element type UINT8 is no float"}


def test_bound_mask_is_not_left_alone_for_a_refusal_of_the_same_name() -> None:
    weight = weight_of(0)
    refused = [Refusal("other", (Q,), "lies in a branch")]
    bindings, left_alone = bind([site("w", weight, Q)], refused, masks_of(mask_of(Q, weight)))
    assert [b.site.name for b in bindings] == ["w"]
    assert left_alone == {}


# In features by name, for files that store no shapes.


def test_in_features_are_found_under_every_name_of_a_weight() -> None:
    one, _ = fused()
    other = site("val_9", weight_of(0, 4, 24), "lm_head.weight", "model.lm_head.weight")
    find = in_features([one, other])
    assert [find(name) for name in (Q, K, V)] == [16, 16, 16]
    assert find("model.layers.0.self_attn.qkv_proj.weight") == 16
    assert find("lm_head.weight") == 24
    assert find("model.layers.0.self_attn.o_proj.weight") is None


def test_no_masks_bind_to_nothing() -> None:
    assert bound([site("w", weight_of(0))]) == []
