"""The service's promise: with 95 % confidence, at least the wanted share of its answers is right.

Truth comes from the gold rows, which are few; coverage comes from unlabelled rows, which are many. The chance that an
answer is right is modelled as `ceiling * logistic(intercept + slope * logit(confidence))`. The ceiling is below 1 if
the teacher makes errors that no confidence shows, such as two labels that it confuses throughout. A likelihood-ratio
test at level 0.05 (one-sided) decides which coefficients the gold rows rule out. The bound on the precision of a
coverage is the lowest that any other coefficients give. Gold rows below a threshold inform the model as well, so the
bound is tighter than the exact one on the answered gold rows alone (Clopper and Pearson 1934). `make bench-promise`
compares both with the true labels.

Thresholds are tried from the most confident rows downwards, up to the first that fails. This fixed order pays for the
many looks: each test has level 0.05, and so has the whole sequence (learn then test, Angelopoulos et al. 2021, arXiv
2110.01052).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, chi2

# Of the likelihood ratio, whose one side is 0.05. Chi-squared is its distribution for very many rows: alone, it breaks
# the promise in 6 to 7 % of simulated draws of 50 to 734 rows; a fifth more breaks it in 5 %.
CRITICAL = 1.2 * float(chi2.ppf(0.9, 1))
FIRST, STEP = 0.1, 0.05  # coverages that are tried
CLIP = 1e-4  # the logit of a confidence of 1 is infinite
RANGES = ((-5.0, 6.0), (0.0, 3.0), (0.8, 1.0))  # of intercept, slope and ceiling
GRID, ROUNDS = (11, 11, 5), 3  # values of each, and how often the grid is laid
RAYS, FARTHEST, BISECTIONS = 100, 8.0, 14
MOST_ROWS = 64  # times the gold rows: more is no advice


@dataclass(frozen=True)
class GoldEvidence:
    """Gold rows that the answers were not fitted to: confidence [G] on the student's scale, and who is right [G].

    `weight` (a number, or one for each row) is how many rows a row stands for.
    """

    confidence: np.ndarray
    right: np.ndarray
    weight: np.ndarray | float = 1.0


@dataclass(frozen=True)
class CoveragePoint:
    """What a threshold gives: the share of rows that are answered, and the precision of these answers, estimated and at
    least (with 95 % confidence).
    """

    threshold: float
    coverage: float
    estimate: float
    bound: float


def same_quantiles(values: np.ndarray, scale: np.ndarray, other_scale: np.ndarray) -> np.ndarray:
    """Return values [N] of one scale on another: a value that a share of `scale` lies below becomes the value that the
    same share of `other_scale` lies below.
    """
    share = np.interp(values, np.sort(scale), np.linspace(0, 1, len(scale)))
    return np.quantile(other_scale, share)


def coverage_points(evidence: GoldEvidence, confidence: np.ndarray, counts: np.ndarray) -> list[CoveragePoint]:
    """Return a point for each coverage from FIRST to 1, most confident first.

    `confidence` [N] is that of unlabelled rows, `counts` [N] is 0 for a row whose answer counts as wrong whatever its
    confidence, else 1.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, counts = confidence[order], counts[order]
    answered = np.unique(np.ceil(np.arange(FIRST, 1 + 1e-9, STEP) * len(ranked) - 1e-9).astype(int))
    right = chance_right(plausible_coefficients(evidence), ranked) * counts
    precision = (np.cumsum(right, axis=1) / np.arange(1, len(ranked) + 1))[:, answered - 1]
    return [
        CoveragePoint(float(ranked[n - 1]), n / len(ranked), float(precision[0, k]), float(precision[:, k].min()))
        for k, n in enumerate(answered)
    ]


def chance_right(coefficients: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the model's chance [P, N] that answers of a confidence [N] are right, for coefficients [P, 3]."""
    intercept, slope, ceiling = (coefficients[:, [number]] for number in range(3))
    return ceiling * expit(intercept + slope * logit(np.clip(confidence, CLIP, 1 - CLIP)))


def log_likelihood(coefficients: np.ndarray, evidence: GoldEvidence) -> np.ndarray:
    """Return the log-likelihoods [P] of coefficients [P, 3]."""
    chance = np.clip(chance_right(coefficients, evidence.confidence), CLIP, 1 - CLIP)
    return (evidence.weight * np.log(np.where(evidence.right, chance, 1 - chance))).sum(axis=1)


def plausible_coefficients(evidence: GoldEvidence) -> np.ndarray:
    """Return coefficients [P, 3]: the most likely ones first, then the outermost that the gold rows do not rule out.

    A grid, laid again over what it has not ruled out, finds the most likely coefficients and the shape of the region
    around them; bisection along rays from there finds its edge.
    """
    ranges: tuple[tuple[float, float], ...] = RANGES
    for _ in range(ROUNDS):
        axes = [np.linspace(*bounds, count) for bounds, count in zip(ranges, GRID, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        likelihood = log_likelihood(grid, evidence)
        kept = grid[2 * (likelihood.max() - likelihood) <= CRITICAL]
        # The next grid reaches a step beyond, since the true edge lies between two values.
        ranges = tuple(
            (max(low, least - axis[1] + axis[0]), min(high, most + axis[1] - axis[0]))
            for (low, high), axis, least, most in zip(RANGES, axes, kept.min(axis=0), kept.max(axis=0), strict=True)
        )
    best = grid[[likelihood.argmax()]]
    steps = np.array([axis[1] - axis[0] for axis in axes])
    covariance = np.cov(kept, rowvar=False, ddof=0) + np.diag(steps**2 / 4)
    rays = sphere(RAYS) @ np.linalg.cholesky(covariance).T
    lowest, highest = np.array(RANGES).T
    inside, outside = np.zeros((RAYS, 1)), np.full((RAYS, 1), FARTHEST)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        found = log_likelihood(np.clip(best + middle * rays, lowest, highest), evidence)
        plausible = (2 * (likelihood.max() - found) <= CRITICAL)[:, None]
        inside, outside = np.where(plausible, middle, inside), np.where(plausible, outside, middle)
    return np.vstack([best, np.clip(best + inside * rays, lowest, highest)])


def sphere(count: int) -> np.ndarray:
    """Return evenly spread unit vectors [count, 3]: a Fibonacci lattice."""
    number = np.arange(count) + 0.5
    height, angle = 1 - 2 * number / count, np.pi * (1 + 5**0.5) * number
    width = np.sqrt(1 - height**2)
    return np.stack([width * np.cos(angle), width * np.sin(angle), height], axis=1)


def certified_point(points: Sequence[CoveragePoint], precision: float) -> CoveragePoint | None:
    """Return the point with the most answers before the first one whose bound is below `precision`, if there is one."""
    found = None
    for point in points:
        if point.bound < precision:
            break
        found = point
    return found


def likely_point(points: Sequence[CoveragePoint], precision: float) -> CoveragePoint | None:
    """Return the point with the most answers whose estimate is at least `precision`, if there is one."""
    return max(
        (point for point in points if point.estimate >= precision), key=lambda point: point.coverage, default=None
    )


def more_rows_needed(
    evidence: GoldEvidence, confidence: np.ndarray, counts: np.ndarray, precision: float
) -> int | None:
    """Return how many more gold rows like these would certify a threshold; None if the estimate itself is too low."""

    def certifies(times: float) -> bool:
        points = coverage_points(replace(evidence, weight=times * evidence.weight), confidence, counts)
        return certified_point(points, precision) is not None

    low, high = 1.0, float(MOST_ROWS)
    if not certifies(high):
        return None
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return math.ceil((high - 1) * float(np.sum(np.ones(len(evidence.right)) * evidence.weight)))


def exact_bound(right: int, rows: int) -> float:
    """Return the lower 95 % bound of Clopper and Pearson on a share."""
    return float(beta.ppf(0.05, right, rows - right + 1)) if right else 0.0
