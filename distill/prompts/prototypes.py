"""Where in a picture something looks like what experts drew elsewhere: prototypes of classes and of background in a teacher's own features.

Features of Segment Anything's encoders share one large common part, which makes every two cells alike; so they are first whitened by the
covariance over the exemplars, shrunk towards a sphere, since there are few of them. Each class then has a few prototypes (k-means of the cells
that it fills), and so has everything else; a cell's score is how much nearer it lies to the class than to all the rest. Cells know their place in
the picture, too, as organs do. How much place and shrinkage count is not known beforehand: the scores of several choices are averaged.

PerSAM (Zhang et al. 2023, arXiv 2305.03048) takes one mean feature and its cosine; ProtoSAM (Ayzenberg et al. 2024, arXiv 2407.07042) goes
from a coarse mask by prototypes to boxes and points, as is done here with the teacher's own features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.cluster.vq import kmeans2

from storage import IGNORE

INSIDE = 0.75
"""Share of a cell that a class must fill for the cell to be an example of it; where there is no such cell, the fullest ones are."""
OUTSIDE = 0.05
"""... and below which it is an example of something else."""
PLACE_WEIGHTS = (0.5, 1.0, 2.0)
"""How far apart two opposite edges of the picture lie, in units in which two orthogonal features lie the square root of 2 apart."""
SHRINKAGES = (0.1, 0.3)
MOST_CELLS = 8_000
"""Background cells that k-means looks at, and cells that the covariance is taken over."""
FULLEST = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """One encoded slice: a grid of features that lies over the picture."""

    features: np.ndarray
    """``(h, w, C)`` float32, padding cut off."""
    z: float
    """Place of the slice in the volume, 0 to 1; 0.5 for a picture."""

    def placed(self) -> np.ndarray:
        """Return the places ``(h * w, 3)`` of the cells, z y x from -0.5 to 0.5."""
        h, w = self.features.shape[:2]
        y, x = np.meshgrid((np.arange(h) + 0.5) / h - 0.5, (np.arange(w) + 0.5) / w - 0.5, indexing="ij")
        return np.stack([np.full(h * w, self.z - 0.5), y.ravel(), x.ravel()], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A slice with what experts drew on it."""

    cells: Cells
    fractions: Mapping[int, np.ndarray]
    """Class id -> ``(h, w)``: the share of each cell that the class fills. A class that experts did not look for is missing, and what they left
    open is under ``storage.IGNORE``: neither is an example of anything."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Metric:
    """One choice of how features and places are compared."""

    mean: np.ndarray
    whitening: np.ndarray
    place_weight: float

    def points(self, features: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return ``(n, C + 3)``: whitened features of length 1, then the weighted place."""
        flat = (features - self.mean) @ self.whitening
        unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        return np.asarray(np.concatenate([unit, self.place_weight * places], axis=1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Space:
    """The prototypes in one metric."""

    metric: _Metric
    classes: Mapping[int, np.ndarray]
    rest: np.ndarray

    def scores(self, cells: Cells, class_id: int) -> np.ndarray:
        """Return ``(h * w,)``: squared distance to the nearest of all else, if anything else was seen, less that to the nearest prototype of the class."""
        points = self.metric.points(cells.features.reshape(-1, cells.features.shape[2]), cells.placed())
        others = np.concatenate([self.rest, *(each for key, each in self.classes.items() if key != class_id)])
        own = _nearest(points, self.classes[class_id])
        return _nearest(points, others) - own if len(others) else -own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prototypes:
    """What was learnt from examples."""

    spaces: tuple[_Space, ...]

    @property
    def classes(self) -> frozenset[int]:
        """Return the classes that the examples showed."""
        return frozenset(self.spaces[0].classes)

    def score(self, cells: Cells, class_id: int) -> np.ndarray:
        """Return how much each cell looks like a class, ``(h, w)`` float32; 0 is as near to it as to anything else."""
        mean = np.mean([space.scores(cells, class_id) for space in self.spaces], axis=0)
        return np.asarray(mean, np.float32).reshape(cells.features.shape[:2])


def learn(examples: Sequence[Example], classes: Sequence[int], *, prototypes: int, background: int, seed: int = 0) -> Prototypes:
    """Learn what classes look like.

    Args:
        examples: slices with and without the classes.
        classes: ids; one that no example shows is left out.
        prototypes: of each class.
        background: of everything else.
        seed: of k-means, and of the choice of background cells.

    Raises:
        ValueError: if no example shows any of the classes.
    """
    shown = [class_id for class_id in classes if any(_is_shown(each, class_id) for each in examples)]
    if not shown:
        message = f"none of {len(examples)} example slices shows any of the classes {list(classes)}."
        raise ValueError(message)
    pool = _Pool.of(examples, shown, np.random.default_rng(seed))
    mean = pool.any_cells.mean(axis=0)
    covariance = np.cov(pool.any_cells - mean, rowvar=False)
    spaces = []
    for weight, shrinkage in product(PLACE_WEIGHTS, SHRINKAGES):
        how = _Metric(mean=mean, whitening=_whitening(covariance, shrinkage), place_weight=weight)
        rng = np.random.default_rng(seed)
        found = {class_id: _centres(how.points(*cells), prototypes, rng) for class_id, cells in pool.inside.items()}
        spaces.append(_Space(metric=how, classes=found, rest=_centres(how.points(*pool.outside), background, rng)))
    return Prototypes(spaces=tuple(spaces))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """The cells that something is learnt from, each set as features ``(n, C)`` and places ``(n, 3)``."""

    inside: Mapping[int, tuple[np.ndarray, np.ndarray]]
    outside: tuple[np.ndarray, np.ndarray]
    any_cells: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], classes: Sequence[int], rng: np.random.Generator) -> "_Pool":
        features = np.concatenate([each.cells.features.reshape(-1, each.cells.features.shape[2]) for each in examples])
        places = np.concatenate([each.cells.placed() for each in examples])
        inside = {}
        for class_id in classes:
            here = np.concatenate([_inside(each, class_id) for each in examples])
            inside[class_id] = features[here], places[here]
        there = _some(np.flatnonzero(np.concatenate([_outside(each, classes) for each in examples])), rng)
        return cls(inside=inside, outside=(features[there], places[there]), any_cells=features[_some(np.arange(len(features)), rng)])


def _some(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many of the indices as are worth their time."""
    return np.sort(rng.choice(indices, MOST_CELLS, replace=False)) if len(indices) > MOST_CELLS else indices


def _is_shown(example: Example, class_id: int) -> bool:
    return class_id in example.fractions and bool(example.fractions[class_id].any())


def _inside(example: Example, class_id: int) -> np.ndarray:
    """Return ``(h * w,)`` bool: the cells that a class fills, or the fullest ones of a class that is smaller than a cell."""
    if not _is_shown(example, class_id):
        return np.zeros(example.cells.features.shape[0] * example.cells.features.shape[1], bool)
    flat = example.fractions[class_id].ravel()
    full = flat >= INSIDE
    return np.asarray(full if full.any() else flat >= max(np.sort(flat)[-FULLEST:][0], 1e-6))


def _outside(example: Example, classes: Sequence[int]) -> np.ndarray:
    """Return ``(h * w,)`` bool: the cells that are known to be none of the classes."""
    if any(class_id not in example.fractions for class_id in classes):
        return np.zeros(example.cells.features.shape[0] * example.cells.features.shape[1], bool)
    return np.asarray(np.max([example.fractions[key] for key in (*classes, IGNORE) if key in example.fractions], axis=0).ravel() <= OUTSIDE)


def _whitening(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the matrix that makes features of this covariance, shrunk towards a multiple of the identity, round."""
    size = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / size * np.eye(size)
    values, vectors = np.linalg.eigh(shrunk)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-12)))


def _centres(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most ``count`` typical points."""
    if len(points) <= count:
        return points
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its centre, which is a cell that was seen
        centres, _ = kmeans2(points, count, minit="++", rng=rng)
    return np.asarray(centres)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return ``(n,)``: the squared distance of each point to the nearest centre."""
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None] - 2 * points @ centres.T
    return np.asarray(squares.min(axis=1))
