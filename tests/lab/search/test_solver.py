import itertools

import numpy as np
import pandas as pd
import pytest

from modelopt_nb.lab.search.solver import choose_schemes


def problem(seed: int, largest: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    random, groups, schemes = np.random.default_rng(seed), [f"g{i}" for i in range(6)], ["a", "b", "c"]
    sizes = pd.DataFrame(random.integers(largest // 100, largest, (6, 3)), groups, schemes)
    return sizes, pd.DataFrame(10.0 ** random.uniform(-8, -1, (6, 3)), groups, schemes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("largest", [10**6, 10**9])
def test_the_choice_is_the_best_of_all(seed, largest):
    sizes, errors = problem(seed, largest)
    every = list(itertools.product(range(3), repeat=6))
    size = [sizes.to_numpy()[range(6), c].sum() for c in every]
    error = [errors.to_numpy()[range(6), c].sum() for c in every]
    for limit in sorted(size)[:: len(size) // 7]:  # each is met exactly by one choice; a byte less excludes it
        for bound in (limit, limit - 1):
            fitting = [i for i in range(len(every)) if size[i] <= bound]
            if fitting:
                best = every[min(fitting, key=error.__getitem__)]
                assert list(choose_schemes(sizes, errors, bound)) == [sizes.columns[i] for i in best]


def test_an_impossible_budget_raises():
    sizes, errors = problem(0, 10**6)
    with pytest.raises(RuntimeError, match="no optimum: .*infeasible"):
        choose_schemes(sizes, errors, sizes.min(axis=1).sum() - 1)
