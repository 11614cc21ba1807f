"""Gates: what stands between a frozen weight and its layer while masks are learned.

A gate turns W into W * M, with M = T + (1 - T) P: T says how dense each tile is, P is the
pattern of a sparse tile (PATCH, arXiv 2509.23410, section 3).

N: out features. K: in features. R, C: tiles along N and K. n: rows of a slice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from patch_compile.learn.training.noise import Draw, logistic
from patch_compile.learn.training.patterns import Pattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import TileGrid

__all__ = ["Gate", "Moment", "Pull", "Tied", "parameters_of"]

# Elements of a slice: on a CPU its temporary tensors then stay in the caches and the calls
# cost little beside the work; a GPU wants few, long launches.
_SLICE = {"cpu": 2**18, "other": 2**25}


@dataclass(frozen=True)
class Pull:
    """The penalties' part in the gradient of one gate's mask.

    Attributes:
        budget: dL/dT of a tile for each unit that it would gain, from |density - (1 -
            sparsity)|; the sparse pattern itself has no say in it.
        norm: dL/dM of an element is -norm W^2 M, from what keeping a large weight earns.
    """

    budget: float = 0.0
    norm: float = 0.0

    def added(self, grad: Tensor, masked: Tensor) -> Tensor:
        """Adds the norm's part, as of W M, to the gradient of W M, (n, K)."""
        return torch.add(grad, masked, alpha=-self.norm) if self.norm else grad


@dataclass
class Moment:
    """Where a run stands: all gates of a model share one and read it as they are used.

    Attributes:
        tile: how tile logits are read.
        pattern: how pattern logits are read.
        draw: the sample that is drawn; None draws no noise.
        opened: gates let weights pass whole: the dense model.
        dtype: of masked weights and their products; None for the weight's own.
    """

    tile: Annealed
    pattern: Annealed
    draw: Draw | None = None
    opened: bool = False
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class Tied:
    """Logits that several gates share.

    Attributes:
        name: the same in all of them; the noise goes by it.
        logits: parameter (G,), the same in all of them.
        index: int64 (R, C), the logit that each tile of this gate goes by.
    """

    name: str
    logits: Parameter
    index: Tensor


class Gate(nn.Module):
    """The mask of one weight while it is learned.

    Attributes:
        tiles: parameter (R, C), the tiles' logits, or scores where they are set; or (G,),
            shared with other gates.
        index: buffer (R, C), the element of shared `tiles` that each tile goes by, or None.
        stored: parameter, N rows, what the pattern stores.
        dense: buffer (R, C), the tiles as they are set, or None.
        gains: buffer float32, broadcasts to (R, C): what the budget gains if a tile goes
            sparse.
        name: of the weight; noise and files go by it.
        grid: the tiles.
        pattern: kind of pattern.
        moment: where the run stands.
        pull: of the penalties; set between the forward and the backward pass.
        gained: sum over (1 - T) gains, of the last forward pass, float64 ().
        norm: sum over (W M)^2, of the last forward pass, float64 ().
    """

    def __init__(
        self,
        name: str,
        grid: TileGrid,
        pattern: Pattern,
        moment: Moment,
        *,
        tiles: Tensor | Tied,
        stored: Tensor,
        dense: Tensor | None = None,
        gains: Tensor | None = None,
    ) -> None:
        """Builds a gate.

        Args:
            name: of the weight.
            grid: the tiles, all of one size but for the last of an axis.
            pattern: kind of pattern.
            moment: shared by all gates.
            tiles: float32 (R, C), logits to learn, dense above 0, or shared ones; or scores,
                where tiles are set.
            stored: what the pattern stores, N rows.
            dense: bool (R, C), the tiles as they are set; None learns them.
            gains: float32, broadcasts to (R, C), in units of the budget; None counts zeros.
        """
        super().__init__()
        self.dense: Tensor | None
        self.gains: Tensor
        self.index: Tensor | None
        self.name = name
        self.grid = grid
        self.pattern = pattern
        self.moment = moment
        self.pull = Pull()
        self.gained = self.norm = torch.zeros((), dtype=torch.float64)
        index = None
        if isinstance(tiles, Tied):
            self.tiles, self._drawn_as, index = tiles.logits, tiles.name, tiles.index
        else:
            self.tiles, self._drawn_as = Parameter(tiles, requires_grad=dense is None), name
        self.register_buffer("index", index)
        self.register_buffer("dense", dense)
        self.register_buffer("gains", _zeros(grid, pattern) if gains is None else gains)
        self.stored = Parameter(stored, requires_grad=pattern.learns)

    @property
    def learns_tiles(self) -> bool:
        """Tiles have logits that learn; else they are set."""
        return self.dense is None

    @property
    def logits(self) -> Tensor:
        """The logit of each tile, float32 (R, C); its score where tiles are set."""
        return self._of_tiles(self.tiles)

    def _of_tiles(self, values: Tensor) -> Tensor:
        """Gives each tile its own of values that are shaped like `tiles`."""
        return values if self.index is None else values[self.index]

    def _density(self, tiles: Tensor, generator: Generator | None) -> Tensor:
        """Returns T, float32 (R, C): sampled where tiles are learned, else 0 or 1.

        sigmoid((kappa P + z) / tau), z logistic noise: the closed form of a Gumbel-softmax
        over [P, 0].
        """
        if self.dense is not None:
            dense: Tensor = self.dense
            return dense.float()
        raised = tiles.detach() * self.moment.tile.scale
        if generator is not None:
            raised += self._of_tiles(logistic(self.tiles.shape, generator))
        return torch.sigmoid(raised.div_(self.moment.tile.temperature))

    def drawn(self, tiles: Tensor) -> tuple[Tensor, Generator | None]:
        """Returns T, float32 (R, C), and the pattern's noise, at its start."""
        draw, device = self.moment.draw, tiles.device
        if draw is None:
            return self._density(tiles, None), None
        noise = (
            draw.generator(f"{self._drawn_as}/tiles", device) if self.learns_tiles else None
        )
        return self._density(tiles, noise), draw.generator(f"{self.name}/pattern", device)

    def tile_gradient(self, density: Tensor, sums: Tensor) -> Tensor:
        """Returns the gradient of the tile logits, from T and its gradient, (R, C)."""
        annealed = self.moment.tile
        return sums * density * (1 - density) * (annealed.scale / annealed.temperature)

    def widened(self, tiles: Tensor) -> Tensor:
        """Repeats one value a tile, (R, C), along K, (R, K); one column broadcasts."""
        width = self._tile[1]
        k = self.grid.shape[1]
        return tiles if width in (1, k) else tiles.repeat_interleave(width, 1)[:, :k]

    def heightened(self, widened: Tensor, rows: slice) -> Tensor:
        """Repeats values of tile rows, (R, K), over some rows of the weight, (n, K).

        One row broadcasts.
        """
        height = self._tile[0]
        if height == self.grid.shape[0]:
            return widened
        if height == 1:
            return widened[rows]
        here = torch.arange(rows.start, rows.stop, device=widened.device) // height
        return widened.index_select(0, here)

    def total(self, values: Tensor, rows: slice, sums: Tensor) -> None:
        """Adds values (n, K) of some rows to the sums of their tiles, (R, C)."""
        height, width = self._tile
        if width > 1:
            lacking = -values.shape[1] % width
            padded = nn.functional.pad(values, (0, lacking)) if lacking else values
            values = padded.view(len(padded), -1, width).sum(2)
        here = torch.arange(rows.start, rows.start + values.shape[0], device=values.device)
        sums.index_add_(0, here // height, values)

    def slices(self, device: torch.device) -> Iterator[slice]:
        """Yields the weight's rows in slices of about `_SLICE` elements."""
        n, k = self.grid.shape
        step = max(1, _SLICE.get(device.type, _SLICE["other"]) // k)
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    @property
    def _tile(self) -> tuple[int, int]:
        # Grids of the recipes have one size but for the rest at the end.
        return self.grid.rows[1], self.grid.columns[1]


def _zeros(grid: TileGrid, pattern: Pattern) -> Tensor:
    """Counts the zeros of each tile if it goes sparse; (1, 1) where all have as many."""
    zeros = torch.from_numpy(grid.areas.astype("float32")) * pattern.zeros
    # Tiles of one weight are as many as the weights: one number does for all.
    return zeros[:1, :1].clone() if (zeros == zeros[0, 0]).all() else zeros


def parameters_of(gates: Mapping[str, Gate]) -> dict[str, Parameter]:
    """Lists the parameters of gates as `NAME/tiles` and `NAME/stored`.

    A shared one comes once, under the first gate that has it: twice in an optimiser, in a
    norm or in a file it would be wrong.
    """
    names: dict[Parameter, str] = {}
    for name, gate in gates.items():
        for part, parameter in gate.named_parameters():
            names.setdefault(parameter, f"{name}/{part}")
    return {name: parameter for parameter, name in names.items()}
