"""The cheapest strips that hold every dense tile.

Dense tiles must lie in whole tile rows (bands of N) or whole tile columns (strips of K). A
choice that holds them all is a vertex cover of the bipartite graph whose two sides are the
tile rows and columns and whose edges are the dense tiles; by König's theorem the cheapest is
a minimum cut (König 1931; weighted form: Ford and Fulkerson 1956).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["minimum_cover"]

# scipy's flow counts in 32 bits; larger costs are divided until they fit.
_LARGEST = 2**30


def minimum_cover(
    dense: NDArray[np.bool_], row_cost: NDArray[Any], column_cost: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the rows, bool (R,), and columns, bool (C,), of least total cost.

    Args:
        dense: bool (R, C), the tiles to hold.
        row_cost: positive integers (R,).
        column_cost: positive integers (C,).
    """
    if not dense.any():
        return np.zeros(dense.shape[0], np.bool_), np.zeros(dense.shape[1], np.bool_)
    # Imported here, against the house rule: a fifth of a second that only free maps need.
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    network, source, sink = _network(dense, row_cost, column_cost)
    residual = network - maximum_flow(network, source, sink).flow
    residual.eliminate_zeros()
    reached = np.zeros(network.shape[0], np.bool_)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    row_count = dense.shape[0]
    return ~reached[:row_count], reached[row_count:-2]


def _network(
    dense: NDArray[np.bool_], row_cost: NDArray[Any], column_cost: NDArray[Any]
) -> tuple[Any, int, int]:
    """The flow network as a scipy CSR array, and the numbers of its source and sink."""
    from scipy.sparse import coo_array

    row_count, column_count = dense.shape
    source, sink = row_count + column_count, row_count + column_count + 1
    costs = _fitted(np.concatenate([row_cost, column_cost]))
    rows, columns = np.nonzero(dense)
    unlimited = np.full(rows.size, costs.sum() + 1)
    tails = [np.full(row_count, source), np.arange(row_count, source), rows]
    heads = [np.arange(row_count), np.full(column_count, sink), columns + row_count]
    capacity = np.concatenate([costs, unlimited]).astype(np.int32)
    # 32-bit indices: older releases of scipy's flow take no others.
    edges = tuple(np.concatenate(ends).astype(np.int32) for ends in (tails, heads))
    network = coo_array((capacity, edges), shape=(sink + 1, sink + 1))
    return network.tocsr(), source, sink


def _fitted(costs: NDArray[Any]) -> NDArray[np.int64]:
    whole = costs.astype(np.int64)
    whole //= max(1, int(np.gcd.reduce(whole)))
    return np.maximum(1, whole // max(1, -(-int(whole.sum()) // _LARGEST)))
