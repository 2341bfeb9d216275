"""Intervals against SciPy's Student distribution, bootstrapped probabilities against all resamples written out."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from orchestrator.pareto.dominance import non_dominated_mask
from orchestrator.pareto.seeds import pooled_deviation, seed_front_probability, t_interval, t_quantile

SAMPLING = 5 * 0.5 / math.sqrt(4000)  # five standard errors of a share of 4000 draws, which are seeded


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_students(degrees, confidence):
    assert t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_quantiles_out_of_range_are_refused(degrees, confidence):
    with pytest.raises(ValueError, match="must have degrees >= 1"):
        t_quantile(degrees, confidence)


def test_intervals_are_students():
    samples = np.array([[0.90, 100.0], [0.93, 100.0], [0.92, 100.0], [0.95, 100.0]])
    mean, low, high = t_interval(samples)
    expected = stats.t.interval(0.95, 3, samples[:, 0].mean(), stats.sem(samples[:, 0]))
    assert (low[0], high[0]) == pytest.approx(expected)
    assert (mean[1], low[1], high[1]) == (100.0, 100.0, 100.0)
    with pytest.raises(ValueError, match="at least two; given 1"):
        t_interval(samples[:1])


def test_the_deviation_is_pooled_within_groups():
    groups = [np.array([[0.0], [2.0]]), np.array([[10.0], [11.0], [12.0]]), np.array([[99.0]])]
    assert pooled_deviation(groups).tolist() == pytest.approx([math.sqrt((2.0 + 2.0) / 3)])
    assert pooled_deviation([np.array([[1.0, 2.0]])]).tolist() == [0.0, 0.0]


def test_probabilities_are_those_of_all_resamples():
    """Two recipes of two and three seeds: 4 times 27 resamples, each as likely as the other."""
    one, other = np.array([[0.0, 5.0], [3.0, 5.0]]), np.array([[1.0, 6.0], [2.0, 6.0], [4.0, 6.0]])
    means = [
        [np.mean(first, axis=0), np.mean(second, axis=0)]
        for first, second in product(product(one, repeat=2), product(other, repeat=3))
    ]
    expected = np.mean([non_dominated_mask(np.array(pair)) for pair in means], axis=0)
    assert 0 < expected[1] < 1
    assert seed_front_probability([one, other], draws=4000) == pytest.approx(expected, abs=SAMPLING)


def test_a_recipe_of_one_seed_has_the_deviation_of_the_others():
    """The first one's mean is 0 in every resample but by its own spread, which the other's single value has as well."""
    spread = 1.0 / math.sqrt(2)
    groups = [np.array([[-0.5, 0.0], [0.5, 0.0]]), np.array([[0.4, 1.0]])]
    means = {-0.5: 0.25, 0.0: 0.5, 0.5: 0.25}
    expected = sum(share * NormalDist(0.4, spread).cdf(mean) for mean, share in means.items())
    assert seed_front_probability(groups, draws=4000) == pytest.approx([1.0, expected], abs=SAMPLING)


def test_without_replicates_the_values_decide():
    groups = [np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])]
    assert seed_front_probability(groups, draws=3).tolist() == [1.0, 1.0, 0.0]
    assert seed_front_probability([]).shape == (0,)


def test_the_seed_decides():
    groups = [np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[0.4, 1.0], [0.1, 1.5]])]
    first = seed_front_probability(groups, 100, seed=1)
    assert first.tolist() == seed_front_probability(groups, 100, seed=1).tolist()
    assert first.tolist() != seed_front_probability(groups, 100, seed=2).tolist()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="S >= 1 and one M"):
        seed_front_probability([np.zeros((2, 2)), np.zeros((0, 2))])
    with pytest.raises(ValueError, match="S >= 1 and one M"):
        seed_front_probability([np.zeros((2, 2)), np.zeros((2, 3))])
    with pytest.raises(ValueError, match="values must be finite"):
        seed_front_probability([np.array([[np.inf]])])
    with pytest.raises(ValueError, match="draws must be >= 1"):
        seed_front_probability([np.zeros((2, 2))], draws=0)
