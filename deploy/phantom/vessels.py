"""Vessels of the lungs, grown as trees, and tubes in general.

A tree grows towards points scattered in the lung: each point is reached from the node
that makes its way to the root shortest. Radii then follow from the number of tips a
piece feeds (Murray 1926: r^p is conserved at a fork; p = 2.7 fits pulmonary arteries,
Huang et al. 1996), so the trees taper and fork as real ones do without being drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from deploy.phantom.space import Field, Point, Space, capsule, fill, paint

EXPONENT = 2.7
"""Murray exponent of pulmonary arteries (Huang et al. 1996)."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Pieces of tube, each from its parent's end to its own end."""

    start: Float64[np.ndarray, "N 3"]
    """Where each piece begins, mm."""
    end: Float64[np.ndarray, "N 3"]
    """Where it ends, mm."""
    radius: Float64[np.ndarray, "N 2"]
    """Radius at both ends, mm."""


def grow(
    rng: np.random.Generator,
    root: Point,
    targets: Float64[np.ndarray, "T 3"],
    tip_mm: float,
    step_mm: float = 9.0,
) -> Tree:
    """A tree from the root to every target.

    Args:
        rng: Bends the branches.
        root: Where the trunk enters, mm.
        targets: Tips of the branches, mm.
        tip_mm: Radius at a tip.
        step_mm: Longest straight piece.
    """
    start = np.asarray(root, dtype=np.float64)
    apart = np.linalg.norm(targets - start, axis=1)
    longest = 2.0 * float(np.ptp(np.vstack([targets, start]), axis=0).sum())
    room = 1 + len(targets) * (1 + int(np.ceil(longest / step_mm)))
    nodes, path = np.empty((room, 3)), np.zeros(room)
    parents = np.zeros(room, dtype=np.int64)
    nodes[0], count = start, 1
    for target in targets[np.argsort(apart, kind="stable")]:
        way = target - nodes[:count]
        gap = np.sqrt(np.einsum("ij,ij->i", way, way))
        parent = int(np.argmin(gap + 0.45 * path[:count]))
        if gap[parent] < 2.0:
            continue
        ahead = nodes[parent] - nodes[parents[parent]]
        for point in _bend(rng, nodes[parent], ahead, target, step_mm):
            nodes[count], parents[count] = point, parent
            path[count] = path[parent] + np.sqrt(((point - nodes[parent]) ** 2).sum())
            parent, count = count, count + 1
    return _with_radii(nodes[:count], parents[:count], tip_mm)


def _bend(
    rng: np.random.Generator,
    start: Float64[np.ndarray, " 3"],
    ahead: Float64[np.ndarray, " 3"],
    target: Float64[np.ndarray, " 3"],
    step_mm: float,
) -> Float64[np.ndarray, "K 3"]:
    """Points on a curve that leaves roughly along its parent and ends at the target."""
    length = float(np.sqrt(((target - start) ** 2).sum()))
    direction = ahead / max(float(np.sqrt((ahead**2).sum())), 1e-9)
    control = (start + target) / 2 + 0.18 * length * direction
    control = control + rng.normal(0.0, 0.07 * length, 3)
    count = max(1, int(np.ceil(length / step_mm)))
    t = np.arange(1, count + 1)[:, None] / count
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * target


def _with_radii(
    nodes: Float64[np.ndarray, "N 3"], parents: Int64[np.ndarray, " N"], tip_mm: float
) -> Tree:
    tips = np.ones(len(nodes))
    has_child = np.zeros(len(nodes), dtype=bool)
    has_child[parents[1:]] = True
    tips[has_child] = 0.0
    for node in range(len(nodes) - 1, 0, -1):  # children come after parents
        tips[parents[node]] += tips[node]
    radius = tip_mm * tips ** (1.0 / EXPONENT)
    # A side branch starts with its own radius, not with that of the trunk.
    begin = np.minimum(radius[parents], 1.25 * radius)
    both = np.stack([begin, radius], axis=1)
    return Tree(nodes[parents[1:]], nodes[1:], both[1:])


def scatter(
    rng: np.random.Generator,
    count: int,
    low: Point,
    high: Point,
    inside: Callable[[Float64[np.ndarray, "N 3"]], np.ndarray],
) -> Float64[np.ndarray, "count 3"]:
    """Points drawn evenly from the part of a box where `inside` is true."""
    found: list[np.ndarray] = []
    while sum(len(f) for f in found) < count:
        points = rng.uniform(low, high, (4 * count, 3))
        found.append(points[inside(points)])
    return np.concatenate(found)[:count]


def joined(trees: Sequence[Tree]) -> Tree:
    """The pieces of several trees as one."""
    return Tree(
        np.concatenate([tree.start for tree in trees]),
        np.concatenate([tree.end for tree in trees]),
        np.concatenate([tree.radius for tree in trees]),
    )


def paint_tree(hu: Field, space: Space, tree: Tree, value: float) -> None:
    """Paint every piece; brighter tissue that is already there stays.

    Pieces thinner than a voxel are not drawn but weighed: their blood is shared among
    the voxels round them, so that a vessel fades with its cross-section and never
    breaks into beads. That is also most of the pieces, and a tenth of the time.
    """
    tree = _near(tree, space)
    thin = tree.radius.max(axis=1) < 0.6 * space.edge_mm
    share = _thin_share(tree, thin, space)
    paint(hu, share, np.maximum(hu, np.float32(value)))
    for a, b, ends in zip(
        tree.start[~thin], tree.end[~thin], tree.radius[~thin].tolist(), strict=True
    ):
        reach = max(ends) + space.edge_mm
        cut = space.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        if cut is not None:
            window, s = cut
            part = hu[window]
            tube = capsule(s, a, b, (ends[0], ends[1]))
            paint(part, fill(tube, s.edge_mm), np.maximum(part, np.float32(value)))


def _near(tree: Tree, space: Space) -> Tree:
    """The pieces that can touch the space, so that a small crop costs little."""
    ends = np.stack([tree.start, tree.end])
    index = ends @ space.to_index[:, :3].T + space.to_index[:, 3]
    margin = float(tree.radius.max(initial=0.0)) / space.edge_mm + 2.0
    low, high = index.min(axis=0) - margin, index.max(axis=0) + margin
    kept = ((high > 0) & (low < np.asarray(space.shape))).all(axis=1)
    return Tree(tree.start[kept], tree.end[kept], tree.radius[kept])


def _thin_share(
    tree: Tree, thin: Bool[np.ndarray, " N"], space: Space
) -> Float32[np.ndarray, "D H W"]:
    """Share of each voxel that the thin pieces fill, by trilinear weights."""
    ways = tree.end[thin] - tree.start[thin]
    length = np.linalg.norm(ways, axis=1)
    count = np.maximum(1, np.ceil(length / (0.4 * space.edge_mm))).astype(int)
    piece = np.repeat(np.arange(len(count)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    along = (np.arange(len(piece)) - first + 0.5) / count[piece]
    points = tree.start[thin][piece] + along[:, None] * ways[piece]
    begin, end = tree.radius[thin].T
    radius = begin[piece] + along * (end - begin)[piece]
    volume = np.pi * radius**2 * (length / count)[piece]
    volume /= abs(float(np.linalg.det(space.affine[:3, :3])))
    index = points @ space.to_index[:, :3].T + space.to_index[:, 3]
    low = np.floor(index).astype(int)
    weight = index - low
    corners = np.array(list(np.ndindex(2, 2, 2)))
    at = (low + corners[:, None]).reshape(-1, 3)
    near = np.where(corners[:, None], weight, 1.0 - weight).prod(axis=2) * volume
    inside = ((at >= 0) & (at < space.shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(at[inside].T), space.shape)
    share = np.bincount(
        flat, near.reshape(-1)[inside], minlength=int(np.prod(space.shape))
    )
    return np.minimum(share, 1.0).astype(np.float32).reshape(space.shape)


def paint_path(
    hu: Field,
    space: Space,
    points: Sequence[Point],
    radius: Sequence[float],
    value: float,
) -> None:
    """A tube along points, painted over whatever is there (airways, great vessels)."""
    for (a, b), ends in zip(pairwise(points), pairwise(radius), strict=True):
        reach = max(ends) + space.edge_mm
        cut = space.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        if cut is not None:
            window, s = cut
            paint(hu[window], fill(capsule(s, a, b, ends), s.edge_mm), value)
