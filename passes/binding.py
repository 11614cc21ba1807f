"""Which mask belongs to which weight of the graph.

Names are tried first (metadata, initializer, node), then content digests. A mask that fits
nowhere, or in two places, is an error that lists candidates: guessing would prune the wrong
weight in silence. N: out features. K: in features.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from patch_compile.errors import MaskError
from patch_compile.io.digests import digest_key, digest_rows
from patch_compile.io.onnx_model import open_rows
from patch_compile.passes.sites import Refusal, Site
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = ["Binding", "bind", "in_features", "slice_digest"]

# Exporters that fuse projections stack them along N in this order.
_FUSED: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
# Different exporters' words for the same module.
_SAME = {"self_attn": "attn", "self_attention": "attn"}

Path = tuple[str, ...]


@dataclass(frozen=True)
class Binding:
    """The masks of one site, in order along N, and how they were found."""

    site: Site
    masks: tuple[WeightMask, ...]
    how: Literal["name", "digest"]


def bind(
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    masks: Masks,
    elsewhere: Sequence[Refusal] = (),
) -> tuple[list[Binding], dict[str, str]]:
    """Binds every mask to one site.

    Args:
        sites: weights that masks may go to.
        refusals: weights that cannot be lowered, and why.
        masks: each must find its weight.
        elsewhere: tensors that no product multiplies by, for masks that fit nothing else.

    Returns:
        The bindings in graph order, and for masks whose weight was refused the reason.

    Raises:
        MaskError: if a mask fits nowhere or twice, or its shape differs.
    """
    named = _by_name(sites, masks)
    taken = {mask.name for parts in named.values() for mask in parts}
    left_alone = _refused(refusals, masks, taken) | _twins(sites, masks)
    missing = [m for m in masks.weights.values() if m.name not in {*taken, *left_alone}]
    free = [site for site in sites if site.name not in named]
    digested = _by_digest(free, missing)
    found = {mask.name for parts in digested.values() for mask in parts}
    left_alone |= _refused(elsewhere, masks, taken | found | left_alone.keys())
    unbound = [mask.name for mask in missing if mask.name not in {*found, *left_alone}]
    if unbound:
        raise MaskError(_nowhere(unbound, sites))
    bindings = [
        *(Binding(s, _checked(s, named[s.name]), "name") for s in sites if s.name in named),
        *(Binding(s, digested[s.name], "digest") for s in sites if s.name in digested),
    ]
    order = {site.name: index for index, site in enumerate(sites)}
    return sorted(bindings, key=lambda b: order[b.site.name]), left_alone


def in_features(sites: Iterable[Site]) -> Callable[[str], int | None]:
    """Returns a look-up of K by parameter name, for mask files that store no shapes."""
    known = [
        (part, site.weight.shape[1])
        for site in sites
        for parameter in site.parameters
        for part in _paths(parameter)
    ]

    def find(parameter: str) -> int | None:
        path = _path(parameter)
        return next((k for part, k in known if _alike(part, path)), None)

    return find


def _by_name(sites: Sequence[Site], masks: Masks) -> dict[str, tuple[WeightMask, ...]]:
    # Letter for letter: no guess can beat that.
    named: dict[str, tuple[WeightMask, ...]] = {
        site: (masks.weights[names[0]],) for site, names in _carried(sites, masks).items()
    }
    exact = {mask.name for parts in named.values() for mask in parts}
    by_path = _by_path([mask for name, mask in masks.weights.items() if name not in exact])
    index = _index(by_path)
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for site in sites:
        parts = () if site.name in named else _first_match(site, by_path, index)
        if parts:
            named[site.name] = parts
            for mask in parts:
                homes[mask.name].append(site.name)
    _check_one_home(homes, "name")
    return named


def _carried(sites: Sequence[Site], masks: Masks) -> dict[str, list[str]]:
    """Lists by site the masks whose name it alone carries, the most certain name first."""
    carriers = Counter(name for site in sites for name in set(site.parameters))
    alone = {
        site.name: [n for n in site.parameters if n in masks.weights and carriers[n] == 1]
        for site in sites
    }
    return {site: names for site, names in alone.items() if names}


def _twins(sites: Sequence[Site], masks: Masks) -> dict[str, str]:
    """Masks of a weight that another mask has: layers may share one, and masks name both.

    Raises:
        MaskError: if they differ.
    """
    found: dict[str, str] = {}
    for site, (first, *others) in _carried(sites, masks).items():
        for name in others:
            if not np.array_equal(masks.weights[first].keep(), masks.weights[name].keep()):
                raise MaskError(
                    f"masks '{first}' and '{name}' | differ, and weight '{site}' stands for "
                    "both; expected equal ones; leave one out (--ignore)"
                )
            found[name] = f"equal to mask '{first}' of the same weight"
    return found


def _by_path(masks: Sequence[WeightMask]) -> dict[Path, WeightMask]:
    by_path: dict[Path, WeightMask] = {}
    for mask in masks:
        other = by_path.setdefault(_path(mask.name), mask)
        if other is not mask:
            raise MaskError(
                f"masks '{other.name}' and '{mask.name}' | are one name to the binding; "
                "expected names that differ in more than '.weight' or 'self_attn'; leave one "
                "out (--ignore)"
            )
    return by_path


def _check_one_home(homes: Mapping[str, Sequence[str]], how: str) -> None:
    for name, where in homes.items():
        if len(where) > 1:
            raise MaskError(
                f"mask '{name}' | fits {len(where)} weights by {how}: {where[:4]}; expected "
                "one; rename the mask or ignore it (--ignore)"
            )


def _first_match(
    site: Site, by_path: Mapping[Path, WeightMask], index: Mapping[Path, list[Path]]
) -> tuple[WeightMask, ...]:
    for parameter in site.parameters:
        for parts in _choices(_path(parameter)):
            found = [_lookup(part, by_path, index) for part in parts]
            if any(mask is not None for mask in found):
                return _filled(site, parts, found)
    return ()


def _path(parameter: str) -> Path:
    steps = parameter.removesuffix(".weight").split(".")
    return tuple(_SAME.get(step, step) for step in steps)


def _choices(path: Path) -> list[tuple[Path, ...]]:
    """The site as one parameter, then as the parts of a fused one."""
    fused = _parts(path)
    return [(path,)] if fused == (path,) else [(path,), fused]


def _parts(path: Path) -> tuple[Path, ...]:
    return tuple((*path[:-1], part) for part in _FUSED.get(path[-1], (path[-1],)))


def _paths(parameter: str) -> tuple[Path, ...]:
    """The path of a parameter, and those of its parts if it is fused."""
    path = _path(parameter)
    return tuple(dict.fromkeys((path, *_parts(path))))


def _index(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Mask paths under each of their suffixes of two steps or more, and under themselves."""
    index: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        for start in range(max(1, len(path) - 1)):
            index[path[start:]].append(path)
    return dict(index)


def _lookup(
    path: Path, by_path: Mapping[Path, WeightMask], index: Mapping[Path, list[Path]]
) -> WeightMask | None:
    """The mask whose path equals `path`, or of which one is a suffix of the other."""
    if path in by_path:
        return by_path[path]
    longer = index.get(path, [])
    if len(longer) > 1:
        names = sorted(by_path[p].name for p in longer)
        raise MaskError(
            f"weight '{'.'.join(path)}' | fits {len(longer)} masks by name: {names[:4]}; "
            "expected one; ignore the others (--ignore)"
        )
    if longer:
        return by_path[longer[0]]
    shorter = (path[start:] for start in range(1, len(path) - 1))
    return next((by_path[p] for p in shorter if p in by_path), None)


def _filled(
    site: Site, parts: tuple[Path, ...], found: Sequence[WeightMask | None]
) -> tuple[WeightMask, ...]:
    """Puts one dense mask where neighbouring parts of a fused weight have none."""
    known = sum(mask.shape[0] for mask in found if mask is not None)
    holes = [i for i, mask in enumerate(found) if mask is None]
    if not holes:
        return tuple(mask for mask in found if mask is not None)
    if holes != list(range(holes[0], holes[-1] + 1)):
        names = [".".join(parts[i]) for i in holes]
        raise MaskError(f"weight '{site.name}' | has no masks for {names}; give them all")
    n, k = site.weight.shape
    if n - known < 1:
        raise MaskError(f"weight '{site.name}' | has {n} rows, its masks {known}")
    filler = _dense(".".join(parts[holes[0]]) + ".weight", n - known, k)
    before = [mask for mask in found[: holes[0]] if mask is not None]
    after = [mask for mask in found[holes[-1] + 1 :] if mask is not None]
    return (*before, filler, *after)


def _dense(name: str, n: int, k: int) -> WeightMask:
    grid = TileGrid((0, n), (0, k))
    return from_keep(name, grid, np.ones((1, 1), np.bool_), np.ones((n, k), np.bool_))


def _checked(site: Site, masks: tuple[WeightMask, ...]) -> tuple[WeightMask, ...]:
    shape = (sum(mask.shape[0] for mask in masks), masks[0].shape[1])
    if shape != site.weight.shape or any(mask.shape[1] != shape[1] for mask in masks):
        raise MaskError(
            f"weight '{site.name}' | has shape {site.weight.shape} (N, K), its mask "
            f"{' + '.join(str(mask.shape) for mask in masks)} ('{masks[0].name}'); the masks "
            "belong to another model"
        )
    return masks


def _refused(refusals: Sequence[Refusal], masks: Masks, taken: set[str]) -> dict[str, str]:
    left_alone: dict[str, str] = {}
    for refusal in refusals:
        # A compiled model joins the names of a fused weight's masks by "+".
        names = [name for joined in refusal.parameters for name in joined.split("+")]
        paths = {path for name in names for path in _paths(name)}
        for mask in masks.weights.values():
            if mask.name not in taken and any(_alike(_path(mask.name), p) for p in paths):
                left_alone[mask.name] = refusal.reason
    return left_alone


def _alike(a: Path, b: Path) -> bool:
    short, long = sorted((a, b), key=len)
    return a == b or (len(short) > 1 and long[-len(short) :] == short)


def _by_digest(
    sites: Sequence[Site], masks: Sequence[WeightMask]
) -> dict[str, tuple[WeightMask, ...]]:
    """Matches whole weights, then consecutive slices of N, by their content."""
    homes: defaultdict[str, list[str]] = defaultdict(list)
    found: dict[str, tuple[WeightMask, ...]] = {}
    for site in sites:
        parts = _slices(site, masks)
        if parts:
            found[site.name] = parts
            for mask in parts:
                homes[mask.name].append(site.name)
    _check_one_home(homes, "content")
    return found


def _slices(site: Site, masks: Sequence[WeightMask]) -> tuple[WeightMask, ...]:
    n, k = site.weight.shape
    parts: list[WeightMask] = []
    start = 0
    while start < n:
        fitting = [m for m in masks if m.shape[1] == k and m not in parts]
        mask = _at(site, start, fitting)
        if mask is None:
            return ()
        parts.append(mask)
        start += mask.shape[0]
    return tuple(parts)


def _at(site: Site, start: int, masks: Sequence[WeightMask]) -> WeightMask | None:
    """The mask whose weight starts at row `start`; twins with equal content are refused."""
    n = site.weight.shape[0]
    for height in sorted({m.shape[0] for m in masks if start + m.shape[0] <= n}):
        key, content = slice_digest(site, start, start + height)
        twins = [m for m in masks if m.shape[0] == height and m.digests.get(key) == content]
        if len(twins) > 1:
            names = [mask.name for mask in twins]
            raise MaskError(f"weight '{site.name}' | has the content of {names}; expected one")
        if twins:
            return twins[0]
    return None


def slice_digest(site: Site, start: int, stop: int) -> tuple[str, str]:
    """Digests rows `start:stop` of N of a site's original weight, as it is stored.

    Returns:
        The key under which a mask keeps this digest, and the digest.
    """
    weight = site.weight
    key = digest_key(weight.tensor.dtype.numpy().name, transposed=weight.transposed)
    rows = open_rows(weight.tensor)
    if not weight.transposed:
        return key, digest_rows(rows, slice(start, stop), slice(None))
    return key, digest_rows(rows, slice(0, rows.shape[0]), slice(start, stop))


def _nowhere(unbound: Sequence[str], sites: Sequence[Site]) -> str:
    names = [site.label for site in sites]
    near = get_close_matches(unbound[0], names, n=3, cutoff=0.0) or ["none at all"]
    return (
        f"mask '{unbound[0]}' | fits no weight of the model by metadata, name or content "
        f"({len(unbound)} such masks); nearest weights: {', '.join(near)}; give the masks "
        "made for this model, or leave these out (--ignore)"
    )
