"""Gaussian process regression for a few hundred observations: the surrogate of `search.ehvi`. numpy and scipy alone.

Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.2, 4.2.1 and 5.4.1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_ROOT5 = math.sqrt(5.0)
_JITTER = 1e-8
# A priori, in logarithms (mean, standard deviation), for inputs in the unit cube and standardised observations. Lengths are
# held to about one edge: with ten observations in ten dimensions the likelihood alone takes any for noise, or for a cliff.
_LENGTH, _SIGNAL, _NOISE = (0.0, 0.5), (0.0, 1.0), (math.log(0.05), 1.0)
_BOUNDS = ((math.log(0.05), math.log(20.0)), (-3.0, 3.0), (math.log(1e-6), 0.0))


def fit(inputs: FloatArray, values: FloatArray) -> FloatArray:
    """The hyperparameters of largest posterior density: logarithms of D lengths, of the signal's and of the noise's variance.

    Args:
        inputs: (N, D), in the unit cube; N >= 1.
        values: (N,), finite.

    Returns:
        (D + 2,) float64. The same arguments give the same numbers.
    """
    from scipy.optimize import minimize

    dims = inputs.shape[1]
    start = np.array([_LENGTH[0]] * dims + [_SIGNAL[0], _NOISE[0]])
    bounds = [_BOUNDS[0]] * dims + [_BOUNDS[1], _BOUNDS[2]]
    objective = functools.partial(_cost_and_gradient, _squares(inputs, inputs), _standardised(values)[0])
    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 30})
    result: FloatArray = found.x
    return result


class Surrogate:
    """What is believed of a quantity after some observations.

    Args:
        inputs: (N, D), in the unit cube; N >= 1.
        values: (N,), finite, in the quantity's own units.
        hyperparameters: as `fit` returns them; they may come from fewer observations.
    """

    def __init__(self, inputs: FloatArray, values: FloatArray, hyperparameters: FloatArray) -> None:
        from scipy.linalg import cho_solve, cholesky

        scaled, self._mean, self._unit = _standardised(values)
        self._inputs, self._hyper = inputs, hyperparameters
        covariance = _kernel(_squares(inputs, inputs), hyperparameters)[0]
        noise = math.exp(hyperparameters[-1]) + _JITTER
        self._factor = cholesky(covariance + noise * np.eye(len(scaled)), lower=True)
        self._weights = cho_solve((self._factor, True), scaled)

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of what would be observed, noise with it, at each of (P, D) points: (P,) and (P,)."""
        from scipy.linalg import solve_triangular

        cross = _kernel(_squares(points, self._inputs), self._hyper)[0]
        known = solve_triangular(self._factor, cross.T, lower=True)
        variance = math.exp(self._hyper[-2]) - (known**2).sum(axis=0)
        spread = np.sqrt(np.maximum(variance, 0.0) + math.exp(self._hyper[-1]))
        return cross @ self._weights * self._unit + self._mean, spread * self._unit


def _standardised(values: FloatArray) -> tuple[FloatArray, float, float]:
    mean, unit = float(values.mean()), float(values.std()) or 1.0
    return (values - mean) / unit, mean, unit


def _squares(left: FloatArray, right: FloatArray) -> FloatArray:
    """(L, D) and (R, D) to (L, R, D): squared distances along each axis."""
    difference: FloatArray = left[:, None, :] - right[None, :, :]
    return difference**2


def _kernel(squares: FloatArray, hyper: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Matern 5/2 with a length for each axis: the covariances, and the scaled distances."""
    distance: FloatArray = np.sqrt(squares @ np.exp(-2.0 * hyper[:-2]))
    covariance = math.exp(hyper[-2]) * (1.0 + _ROOT5 * distance + 5.0 / 3.0 * distance**2) * np.exp(-_ROOT5 * distance)
    return covariance, distance


def _cost_and_gradient(squares: FloatArray, scaled: FloatArray, hyper: FloatArray) -> tuple[float, FloatArray]:
    """The negative logarithm of the posterior density of hyperparameters, but for a constant, and its gradient."""
    from scipy.linalg import cho_solve, cholesky

    num, dims = len(scaled), len(hyper) - 2
    covariance, distance = _kernel(squares, hyper)
    noise = math.exp(hyper[-1])
    factor = cholesky(covariance + (noise + _JITTER) * np.eye(num), lower=True)
    weights = cho_solve((factor, True), scaled)
    sensitivity = 0.5 * (cho_solve((factor, True), np.eye(num)) - np.outer(weights, weights))
    cost = 0.5 * float(scaled @ weights) + float(np.log(np.diag(factor)).sum())
    gradient = np.empty(dims + 2)
    slope = math.exp(hyper[-2]) * 5.0 / 3.0 * (1.0 + _ROOT5 * distance) * np.exp(-_ROOT5 * distance)
    gradient[:dims] = np.einsum("ij,ijd->d", sensitivity * slope, squares) * np.exp(-2.0 * hyper[:dims])
    gradient[dims] = (sensitivity * covariance).sum()
    gradient[dims + 1] = np.trace(sensitivity) * noise
    priors = np.array([_LENGTH] * dims + [_SIGNAL, _NOISE])
    away = (hyper - priors[:, 0]) / priors[:, 1]
    return cost + 0.5 * float(away @ away), gradient + away / priors[:, 1]
