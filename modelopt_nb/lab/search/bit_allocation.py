"""Choose a scheme for each group of layers within a byte budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd
from torch import nn

from modelopt_nb import MIB, LayerPlan, ModelOptConfig, WeightBytes, describe_layers, make_config, plan, weight_bytes
from modelopt_nb.lab.calibration.model_calls import ModelCall, check_calls
from modelopt_nb.lab.compare.variants import DENSE
from modelopt_nb.lab.search.code import config_code
from modelopt_nb.lab.search.gradient_scores import check_gradients, gradient_scores
from modelopt_nb.lab.search.groups import Groups, as_groups, covering_modules
from modelopt_nb.lab.search.sensitivity import group_errors
from modelopt_nb.lab.search.solver import choose_schemes

#: Schemes that :func:`fit_budget` chooses from by default.
CANDIDATES = (DENSE, "INT8 channel", "NF4", "NF4 double block", "NVFP4", "INT4")


@dataclass(frozen=True)
class Budget:
    """The choice of :func:`fit_budget`.

    Attributes:
        config: Ready for :func:`modelopt_nb.quantize` and for loading.
        bytes: Size of the packed model, all parameters and buffers.
        error: Predicted squared change of the model's output over the squared output.
        choice: A row per group: ``scheme``, ``bytes`` and ``error``.
        errors: The predicted errors behind the choice: a row per group, a column per candidate.
    """

    config: ModelOptConfig
    bytes: int
    error: float
    choice: pd.DataFrame
    errors: pd.DataFrame

    @property
    def mib(self) -> float:
        """``bytes`` in MiB."""
        return self.bytes / MIB

    @property
    def code(self) -> str:
        """Return the call of :func:`modelopt_nb.make_config` that builds ``config``."""
        return config_code(self.config)


def fit_budget(
    model: nn.Module, calls: Sequence[ModelCall], *, mib: float | None = None, bits_per_weight: float | None = None,
    candidates: Sequence[str] = CANDIDATES, groups: Groups = "layer", pointwise_as_linear: bool = True,
    method: str = "output", errors: pd.DataFrame | None = None, progress: bool = True,
) -> Budget:  # fmt: skip
    """Choose a scheme for each group of layers: the least predicted error within the byte budget.

    The groups' errors are assumed to add up; a mixed-integer program picks one candidate per group.

    Args:
        model: A dense model; unchanged afterwards.
        calls: Calls of the model, from :func:`modelopt_nb.record_calls`.
        mib: The budget in MiB, for all parameters and buffers, scales included. Or
        bits_per_weight: the same in bits per weight.
        candidates: Quant types or schemes, and ``"dense"`` if layers may stay dense.
        groups: A word of :func:`modelopt_nb.layer_groups`, or patterns by group name; layers in no group stay dense.
        pointwise_as_linear: As for :func:`modelopt_nb.make_config`.
        method: How to predict errors. ``"output"`` measures the change of the model's output, as
            :func:`modelopt_nb.sensitivity` does; ``"auto_quantize"`` uses ModelOpt's gradient scores, for FP8, INT8 and
            INT4 only.
        errors: :attr:`Budget.errors` of an earlier call with the same groups and candidates, to skip the measuring.

    Raises:
        ValueError: Before anything is measured: a budget below the smallest or above the dense size, with both; an
            unknown candidate or method; no calls; groups that overlap or match nothing.
        RuntimeError: The solver found no optimum.

    Source: the problem is that of Qua2SeDiMo (arXiv 2412.14628); HiGHS through ``scipy.optimize.milp`` solves it.
    """
    describe_layers(model, with_weights=errors is None)
    if errors is None:
        check_calls(calls)
    configs = _candidate_configs(candidates, pointwise_as_linear, method)
    plans = {c: {x.name: x for x in plan(model, config).layers} for c, config in configs.items()}
    layers = next(iter(plans.values()))
    names = as_groups(model, groups, [name for name in layers if any(p[name].packed for p in plans.values())])
    dense = [sum(layers[n].dense_bytes for n in members) for members in names.values()]
    columns = {DENSE: dense} if DENSE in candidates else {}
    columns |= {c: [sum(p[n].packed_bytes for n in members) for members in names.values()] for c, p in plans.items()}
    sizes = pd.DataFrame(columns, list(names))
    total = weight_bytes(model)
    rest = total.total - sum(dense)
    limit = _byte_limit(mib, bits_per_weight, rest + int(sizes.min(axis=1).sum()), total)
    if errors is None:
        shared = calls, names, method, progress
        errors = pd.DataFrame({c: _predicted_errors(model, config, *shared) for c, config in configs.items()})
    elif not (set(names) <= set(errors.index) and set(configs) <= set(errors.columns)):
        raise ValueError(f"errors are of groups and candidates other than {', '.join(names)} and {', '.join(configs)}")
    predicted = errors.assign(**{DENSE: 0.0})
    scheme = choose_schemes(sizes, predicted, limit - rest)
    choice = scheme.to_frame().rename_axis("group")
    choice["bytes"] = [int(sizes.loc[g, c]) for g, c in scheme.items()]
    choice["error"] = [float(predicted.loc[g, c]) for g, c in scheme.items()]
    config = _config(names, scheme.to_dict(), plans, pointwise_as_linear)
    return Budget(config, rest + int(choice["bytes"].sum()), float(choice["error"].sum()), choice, errors)


def _candidate_configs(candidates: Sequence[str], pointwise_as_linear: bool, method: str) -> dict[str, ModelOptConfig]:
    """Return the configurations of all candidates but ``"dense"``; raise ValueError if ``method`` cannot try one."""
    if isinstance(candidates, str):
        raise TypeError(f"candidates={candidates!r} is one string. Allowed: a list of schemes, and 'dense'")
    if method not in ("output", "auto_quantize"):
        raise ValueError(f"method={method!r} is not known. Allowed: 'output', 'auto_quantize'")
    schemes = [c for c in dict.fromkeys(candidates) if c != DENSE]
    configs = {c: make_config(c, pointwise_as_linear=pointwise_as_linear) for c in schemes}
    if not configs:
        raise ValueError(f"candidates={candidates!r} holds no quant type. Allowed: schemes, and 'dense'")
    if method == "auto_quantize":
        for config in configs.values():
            check_gradients(config)
    return configs


def _byte_limit(mib: float | None, bits_per_weight: float | None, smallest: int, dense: WeightBytes) -> float:
    """Return the budget in bytes; raise ValueError unless it is between ``smallest`` and the dense size."""
    for name, value in {"mib": mib, "bits_per_weight": bits_per_weight}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name}={value!r} is not a number. Allowed: a size between the smallest and dense")
    if mib is not None and bits_per_weight is None:
        limit, argument = mib * MIB, f"mib={mib}"
    elif bits_per_weight is not None and mib is None:
        limit, argument = bits_per_weight * dense.weights / 8, f"bits_per_weight={bits_per_weight}"
    else:
        raise ValueError(f"mib={mib} and bits_per_weight={bits_per_weight}: give one of them")
    if not smallest <= limit <= dense.total:
        sizes = (smallest, dense.total)
        low, high = (f"{b / MIB:.2f} MiB ({8 * b / dense.weights:.2f} bits per weight)" for b in sizes)
        raise ValueError(f"{argument} cannot be met with these candidates. Allowed: {low} to {high}, dense")
    return limit


def _predicted_errors(
    model: nn.Module, config: ModelOptConfig, calls: Sequence[ModelCall], groups: Mapping[str, Sequence[str]],
    method: str, progress: bool,
) -> dict[str, float]:  # fmt: skip
    """Return the predicted error of quantizing each group alone."""
    if method == "auto_quantize":
        return gradient_scores(model, config, calls, groups, progress)
    packed = {x.name for x in plan(model, config).layers if x.packed}
    members = {group: [name for name in names if name in packed] for group, names in groups.items()}
    measured = group_errors(model, config, calls, members, progress=progress)
    return {group: errors["error alone"] for group, errors in measured}


def _config(
    groups: Mapping[str, Sequence[str]], scheme_of: Mapping[str, str], plans: Mapping[str, Mapping[str, LayerPlan]],
    pointwise_as_linear: bool,
) -> ModelOptConfig:  # fmt: skip
    """Build a choice's configuration: the scheme with the most layers is the base, ``per_layer`` has the others."""
    layers = list(next(iter(plans.values())))
    members: dict[str, set[str]] = {}
    for group, scheme in scheme_of.items():
        members.setdefault(scheme, set()).update(groups[group])
    base = max((c for c in members if c != DENSE), key=lambda c: len(members[c]), default=next(iter(plans)))
    grouped = {name for names in groups.values() for name in names}
    dense = members.get(DENSE, set()) | {n for n, x in plans[base].items() if x.packed and n not in grouped}
    options: dict[str, Any] = {"modules_to_not_convert": covering_modules(dense, layers)} if dense else {}
    per_layer = {c: covering_modules(names, layers) for c, names in members.items() if c not in (DENSE, base)}
    return make_config(base, per_layer=per_layer, pointwise_as_linear=pointwise_as_linear, **options)
