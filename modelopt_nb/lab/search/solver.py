"""Solve the knapsack problem of bit allocation: one scheme per group within a byte budget."""

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp


def choose_schemes(sizes: pd.DataFrame, errors: pd.DataFrame, limit: float) -> pd.Series:
    """Return the scheme of each group: the least sum of errors whose sum of bytes is at most ``limit``.

    ``sizes`` (bytes) and ``errors`` have a row per group and a column per scheme. Raises RuntimeError if unsolved.

    Source: HiGHS through ``scipy.optimize.milp``: one binary variable per group and scheme.
    """
    errors = errors.loc[sizes.index, sizes.columns]
    groups, schemes = sizes.shape
    # HiGHS's tolerances are absolute (1e-6): KiB, half a byte of slack and errors up to 1000 make them harmless.
    cost, kib = errors.to_numpy(float).ravel(), sizes.to_numpy(float).ravel() / 1024
    one_each = LinearConstraint(np.kron(np.eye(groups), np.ones(schemes)), 1, 1)
    within = LinearConstraint(kib, ub=(np.floor(limit) + 0.5) / 1024)
    result = milp(
        cost * (1000 / (cost.max() or 1.0)), integrality=1, bounds=Bounds(0, 1), constraints=[one_each, within],
        options={"mip_rel_gap": 0},
    )  # fmt: skip
    if result.status != 0:
        raise RuntimeError(f"the solver found no optimum: {result.message}")
    chosen = sizes.columns[result.x.reshape(groups, schemes).argmax(1)]
    return chosen.to_series(index=sizes.index, name="scheme")
