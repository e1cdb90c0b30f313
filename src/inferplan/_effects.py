"""Sums of positive terms whose coefficients are learned by group, each shrunk to what is known of larger groups.

Owns the fit (Gaussian priors on logarithms, Gauss-Newton, robust weights), its variance and its leave-one-out
residuals. Leaves what the terms and groups are to `predict`. NumPy is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ROOF_POWER = 4.0  # of the smooth maximum: 19% above the larger where both are equal, 1% where one is half the other
_ROBUST_DEGREES = 4.0  # of Student's t for the noise: one process that met a cold disk must not bend the fit
_STEPS, _LONGEST_STEP, _CLOSE = 30, 1.0, 3e-3  # of logarithms: far below what any measurement tells
_WEIGHING_STEPS = 6  # then the weights stay: two outliers that take turns would never let the fit come to rest

Key = Hashable


@dataclass(frozen=True, slots=True)
class Model:
    """What is believed before anything is measured. Everything is a natural logarithm.

    A row's value is `exp(sum of its effects) * (roof(first terms) + sum(other terms))`,
    each term times its coefficient.

    Attributes:
        medians: of the coefficients, plain (not logarithms).
        roof: how many terms, from the first, overlap each other: the largest counts.
        spreads: by level, the standard deviation of each coefficient's logarithm between groups of it.
        effects: by level, the standard deviation of the logarithm of a factor on the whole.
        noise: standard deviation of what is left.
    """

    medians: tuple[float, ...]
    roof: int
    spreads: Mapping[str, tuple[float, ...]]
    effects: Mapping[str, float]
    noise: float


@dataclass(frozen=True, slots=True)
class Row:
    """One value, or one to be predicted.

    Attributes:
        terms: each term with its coefficient at 1; at least one is positive.
        groups: by level, the groups that it belongs to; none for a level that is left out.
        offset: logarithm of a factor that is known.
    """

    terms: tuple[float, ...]
    groups: Mapping[str, tuple[Key, ...]]
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Guess:
    """Predictions of some rows; arrays of one element a row.

    Attributes:
        log: natural logarithm of the median.
        sd: its standard deviation, noise included.
        shares: (rows, terms): the part of each term in the value.
    """

    log: Array
    sd: Array
    shares: Array


@dataclass(frozen=True, slots=True)
class Fit:
    """A model with what was learned; made by `fit`.

    Attributes:
        groups: by level, the place of each group that was seen.
        values: what was learned: logarithms, one a parameter, zero where nothing was.
        variances: of each parameter, as believed beforehand.
        jacobian: (rows seen, parameters).
        precision: (rows seen, rows seen): inverse of the covariance of what was seen.
        left_out_log, left_out_sd: each row seen as predicted from the rows of other units.
    """

    model: Model
    groups: Mapping[str, Mapping[Key, int]]
    values: Array
    variances: Array
    jacobian: Array
    precision: Array
    left_out_log: Array
    left_out_sd: Array

    def predict(self, rows: Sequence[Row]) -> Guess:
        """What rows, seen or not, would be; a group that was never seen only adds to the uncertainty."""
        import numpy as np

        incidence, unseen = _incidences(self.model, rows, self.groups)
        log, shares = _values(self.model, rows, incidence, self.values)
        new = _jacobian(self.model, incidence, shares)
        cross = (self.jacobian * self.variances) @ new.T
        variance = (new**2) @ self.variances - np.einsum("ij,ij->j", cross, self.precision @ cross)
        variance = np.maximum(variance, 0.0) + _unseen_variance(self.model, unseen, shares) + self.model.noise**2
        return Guess(log, np.sqrt(variance), shares)


def fit(model: Model, rows: Sequence[Row], seen: Sequence[float], units: Sequence[Key]) -> Fit:
    """The most probable parameters, given positive values of some rows; none at all gives what was believed.

    Laplace's approximation about the mode, found by Gauss-Newton with the robust weights of Student's t.
    Everything is done with matrices of rows by rows, so the count of groups costs little.

    Args:
        seen: the value of each row.
        units: what is left out together in `left_out_log`; rows of one unit are equal here.
    """
    import numpy as np

    groups = _seen_groups(model, rows)
    incidence, _ = _incidences(model, rows, groups)
    variances = _variances(model, groups)
    values = np.zeros(len(variances))
    log_seen = np.log(np.asarray(seen, dtype=float))
    weights = np.ones(len(rows))
    for step in range(_STEPS if rows else 0):
        log, shares = _values(model, rows, incidence, values)
        jacobian = _jacobian(model, incidence, shares)
        target = log_seen - log + jacobian @ values
        covariance = (jacobian * variances) @ jacobian.T + np.diag(model.noise**2 / weights)
        move = variances * (jacobian.T @ np.linalg.solve(covariance, target)) - values
        longest = float(np.abs(move).max())
        values = values + move * min(1.0, _LONGEST_STEP / max(longest, 1e-12))
        if step < _WEIGHING_STEPS:
            residual = (log_seen - _values(model, rows, incidence, values)[0]) / model.noise
            weights = (_ROBUST_DEGREES + 1.0) / (_ROBUST_DEGREES + residual**2)
        elif longest < _CLOSE:
            break
    log, shares = _values(model, rows, incidence, values)
    jacobian = _jacobian(model, incidence, shares)
    covariance = (jacobian * variances) @ jacobian.T + np.diag(model.noise**2 / weights)
    precision = np.linalg.inv(covariance) if rows else covariance
    # A row that comes anew has the noise of any other, however little this one was found to weigh.
    anew = model.noise**2 * (1 - 1 / weights)
    left_log, left_sd = _left_out(precision, log_seen - log + jacobian @ values, log_seen, units, anew)
    return Fit(model, groups, values, variances, jacobian, precision, left_log, left_sd)


def _left_out(
    precision: Array, target: Array, log_seen: Array, units: Sequence[Key], anew: Array
) -> tuple[Array, Array]:
    """Each row from the rows of other units, without fitting again.

    Exact for the model linearised about its mode: Rasmussen and Williams, Gaussian Processes for Machine
    Learning, 2006, section 5.4.2, with blocks in place of single rows.

    Args:
        anew: what is added to the variance of each.
    """
    import numpy as np

    places: dict[Key, list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault(unit, []).append(place)
    weighted = precision @ target
    log, sd = log_seen.copy(), np.zeros(len(log_seen))
    for block in places.values():
        own = np.linalg.inv(precision[np.ix_(block, block)])
        log[block] -= own @ weighted[block]
        sd[block] = np.sqrt(np.maximum(np.diag(own) + anew[block], 0.0))
    return log, sd


def _seen_groups(model: Model, rows: Sequence[Row]) -> dict[str, dict[Key, int]]:
    """By level, the place of each group, in the order in which they come."""
    groups: dict[str, dict[Key, int]] = {level: {} for level in (*model.spreads, *model.effects)}
    for row in rows:
        for level, places in groups.items():
            for key in row.groups.get(level, ()):
                places.setdefault(key, len(places))
    return groups


def _incidences(
    model: Model, rows: Sequence[Row], groups: Mapping[str, Mapping[Key, int]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """By level, which row is of which group, and of how many groups that were never seen."""
    import numpy as np

    incidence = {level: np.zeros((len(rows), len(places))) for level, places in groups.items()}
    unseen = {level: np.zeros(len(rows)) for level in groups}
    for place, row in enumerate(rows):
        for level, places in groups.items():
            for key in row.groups.get(level, ()):
                if key in places:
                    incidence[level][place, places[key]] = 1.0
                else:
                    unseen[level][place] += 1.0
    return incidence, unseen


def _variances(model: Model, groups: Mapping[str, Mapping[Key, int]]) -> Array:
    """Of every parameter: by level, by group, by coefficient; then those of the effects."""
    import numpy as np

    spreads = [np.tile(np.square(spread), len(groups[level])) for level, spread in model.spreads.items()]
    effects = [np.full(len(groups[level]), sd**2) for level, sd in model.effects.items()]
    return np.concatenate([*spreads, *effects])


def _values(model: Model, rows: Sequence[Row], incidence: Mapping[str, Array], values: Array) -> tuple[Array, Array]:
    """Logarithm of each row, and the share of each term in it."""
    import numpy as np

    count = len(model.medians)
    terms = np.array([row.terms for row in rows], dtype=float).reshape(len(rows), count)
    log = np.array([row.offset for row in rows], dtype=float)
    coefficients = np.tile(np.log(model.medians), (len(rows), 1))
    place = 0
    for level in model.spreads:
        size = incidence[level].shape[1]
        coefficients += incidence[level] @ values[place : place + size * count].reshape(size, count)
        place += size * count
    for level in model.effects:
        size = incidence[level].shape[1]
        log += incidence[level] @ values[place : place + size]
        place += size
    parts = terms * np.exp(coefficients)
    if model.roof > 1:
        under = parts[:, : model.roof]
        largest = np.maximum(under.max(axis=1, initial=0.0), 1e-300)[:, None]
        powers = (under / largest) ** _ROOF_POWER
        sums = np.maximum(powers.sum(axis=1, keepdims=True), 1e-300)
        parts[:, : model.roof] = largest * sums ** (1.0 / _ROOF_POWER) * powers / sums
    whole = parts.sum(axis=1)
    return log + np.log(whole), parts / whole[:, None]


def _jacobian(model: Model, incidence: Mapping[str, Array], shares: Array) -> Array:
    """(rows, parameters): a term's share is how its coefficient's logarithm moves the row's."""
    import numpy as np

    rows, count = shares.shape
    blocks = [
        (incidence[level][:, :, None] * shares[:, None, :]).reshape(rows, incidence[level].shape[1] * count)
        for level in model.spreads
    ]
    return np.concatenate([*blocks, *(incidence[level] for level in model.effects)], axis=1)


def _unseen_variance(model: Model, unseen: Mapping[str, Array], shares: Array) -> Array:
    """What groups that were never seen add to the variance of each row."""
    import numpy as np

    variance = np.zeros(len(shares))
    for level, spread in model.spreads.items():
        variance += unseen[level] * (shares**2 @ np.square(spread))
    for level, sd in model.effects.items():
        variance += unseen[level] * sd**2
    return variance
