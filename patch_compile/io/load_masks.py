"""One door to every mask file."""

from collections.abc import Callable
from pathlib import Path

from patch_compile.errors import MaskError
from patch_compile.io.masks_file import read_masks_json
from patch_compile.io.masks_npz import read_masks_npz
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks

__all__ = ["load_masks"]


def load_masks(
    path: str | Path,
    *,
    tile: str = "128x128",
    in_features: Callable[[str], int | None] | None = None,
    wanted: Callable[[list[str]], list[str]] | None = None,
) -> Masks:
    """Reads masks.json, PATCH's mask.npz or MaskLLM's mask_compressed.npz.

    Args:
        path: the file; its ending tells the format.
        tile: geometry for the .npz formats, which store none.
        in_features: K by parameter name, for MaskLLM's files, which store no shapes.
        wanted: picks from the parameter names of an .npz; the others are not read.

    Returns:
        The masks, checked; keep bits stay on disk until they are needed.

    Raises:
        MaskError: one line that names the file or weight, the value and the mending.
    """
    path = Path(path)
    if not path.is_file():
        raise MaskError(f"masks '{path}' | is not a file; give masks.json, a .npz, or 'infer'")
    if path.suffix == ".json":
        return read_masks_json(path)
    if path.suffix == ".npz":
        return read_masks_npz(path, Geometry.parse(tile), in_features, wanted)
    raise MaskError(
        f"masks '{path}' | end in '{path.suffix}'; expected .json or .npz (pickles, "
        "such as .pt, run code when they are read and are refused)"
    )
