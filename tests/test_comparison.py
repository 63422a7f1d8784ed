"""Means, intervals and adjusted p of runs over seeds."""

import numpy as np
import scipy.stats

from experiments.paper import comparison


def test_mean_spread_and_paired_difference():
    values = np.array([1.0, 2.0, 6.0, np.nan])
    assert comparison.mean_and_spread(values) == "3.000 ± 2.646"
    # Student's t of 2 degrees of freedom: 4.303 standard errors of 2.646 / sqrt(3).
    assert comparison.mean_and_interval(values) == "+3.000 ± 6.572"
    assert comparison.mean_and_interval(values[:1]) == "+1.000"
    assert comparison.mean_and_spread(values[3:]) == "-"


def test_p_is_adjusted_for_all_that_is_compared():
    rng = np.random.default_rng(0)
    differences = [
        *(rng.normal(loc=mean, size=5) for mean in (3, 1, 0, 0)),
        np.array([np.nan]),
    ]
    differences[0][0] = np.nan
    p = comparison.adjusted_p(differences)
    alone = [
        scipy.stats.ttest_1samp(one[np.isfinite(one)], 0).pvalue
        for one in differences[:4]
    ]
    # By hand: the smallest times 4, the next times 3, ..., never below the one before.
    by_hand, least = np.zeros(4), 0
    for rank, i in enumerate(np.argsort(alone)):
        least = max(least, min(1, (4 - rank) * alone[i]))
        by_hand[i] = least
    np.testing.assert_allclose(p[:4], by_hand)
    assert np.isnan(p[4])
