"""Choose a scheme for each group of layers under a byte budget."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelopt_nb import MIB, LayerPlan, ModelOptConfig, config_code, make_config, plan, weight_bytes
from modelopt_nb.lab.calibration.model_calls import ModelCall
from modelopt_nb.lab.search.groups import as_groups
from modelopt_nb.lab.search.sensitivity import check_gradients, gradient_scores, sensitivity

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

DENSE = "dense"


CANDIDATES = (DENSE, "INT8 channel", "NF4", "NF4 double block", "NVFP4", "INT4")


@dataclass(frozen=True)
class Budget:
    """What :func:`fit_budget` chose.

    ``config`` is ready for :func:`modelopt_nb.quantize` and for loading; ``bytes`` is what the packed model will take, all
    parameters and buffers, and ``error`` the predicted squared change of its output over its square. ``choice`` is a
    frame with a row a group: ``scheme``, ``bytes`` and ``error``. ``errors`` is what the choice was made from: a row a
    group, a column a candidate.
    """

    config: ModelOptConfig
    bytes: int
    error: float
    choice: pd.DataFrame
    errors: pd.DataFrame

    @property
    def mib(self) -> float:
        """``bytes``, in MiB."""
        return self.bytes / MIB

    @property
    def code(self) -> str:
        """``config`` as the call of :func:`modelopt_nb.make_config` that builds it."""
        return config_code(self.config)


def fit_budget(
    model: nn.Module,
    calls: Sequence[ModelCall],
    *,
    mib: float | None = None,
    bits_per_weight: float | None = None,
    candidates: Sequence[str] = CANDIDATES,
    groups: str | Mapping[str, str | Iterable[str]] = "layer",
    pointwise_as_linear: bool = True,
    method: str = "output",
    errors: pd.DataFrame | None = None,
    progress: bool = True,
) -> Budget:
    """Choose a scheme for each group of layers, so that the model fits the bytes with the least predicted error.

    The errors of the groups are taken to add up; a mixed-integer program picks one candidate for each.

    Args:
        model: A dense model; it is left as it was.
        calls: Inputs of the model, from :func:`modelopt_nb.capture`.
        mib: The most that the packed model may take, in MiB: all parameters and buffers, scales included. Or
        bits_per_weight: the same, in bits a weight.
        candidates: Quant types or schemes, and ``"dense"`` where layers may stay dense.
        groups: A word of :func:`modelopt_nb.layer_groups`, or patterns by group name; layers in no group stay dense.
        pointwise_as_linear: As for :func:`modelopt_nb.make_config`.
        method: How errors are predicted: ``"output"`` measures the change of the model's output, as
            :func:`modelopt_nb.sensitivity` does; ``"auto_quantize"`` lets ModelOpt estimate it from gradients, which takes FP8, INT8
            and INT4 alone.
        errors: Of an earlier call with the same groups and candidates, to choose anew without measuring anew.
        progress: Show progress bars.

    Raises:
        ValueError: Before anything is measured: a budget below the smallest or above the dense size, with both; an unknown
            candidate or method; groups that overlap or match nothing.

    Source: the problem is that of Qua2SeDiMo (arXiv 2412.14628); the solver is CBC, through PuLP.
    """
    import pandas as pd

    if method not in ("output", "auto_quantize"):
        raise ValueError(f"method={method!r} is not known. Allowed: 'output', 'auto_quantize'")
    if (mib is None) == (bits_per_weight is None):
        raise ValueError(f"mib={mib} and bits_per_weight={bits_per_weight}: give one of them")
    configs = {
        c: make_config(c, pointwise_as_linear=pointwise_as_linear) for c in dict.fromkeys(candidates) if c != DENSE
    }
    if not configs:
        raise ValueError(f"candidates={candidates!r} holds no quant type")
    if method == "auto_quantize":
        for config in configs.values():
            check_gradients(config)
    plans = {c: {x.name: x for x in plan(model, config).layers} for c, config in configs.items()}
    able = [name for name in next(iter(plans.values())) if any(layers[name].packed for layers in plans.values())]
    named = as_groups(model, groups, able)
    total = weight_bytes(model)
    sizes = {c: _sizes(named, layers) for c, layers in plans.items()}
    dense = {group: sum(next(iter(plans.values()))[n].dense_bytes for n in names) for group, names in named.items()}
    if DENSE in candidates:
        sizes = {DENSE: dense, **sizes}
    rest = total.total - sum(dense.values())
    smallest = rest + sum(min(by_group[group] for by_group in sizes.values()) for group in named)
    target = mib * MIB if mib is not None else bits_per_weight * total.weights / 8
    if not smallest <= target <= total.total:
        asked = f"mib={mib}" if mib is not None else f"bits_per_weight={bits_per_weight}"
        least, most = (
            f"{size / MIB:.2f} MiB ({8 * size / total.weights:.2f} bits a weight)" for size in (smallest, total.total)
        )
        raise ValueError(f"{asked} cannot be met with these candidates. Allowed: {least} to {most}, dense")

    if errors is None:
        errors = pd.DataFrame(
            {c: _errors(model, config, calls, named, method, progress) for c, config in configs.items()}
        )
    elif not (set(named) <= set(errors.index) and set(configs) <= set(errors.columns)):
        raise ValueError(f"errors are of groups and candidates other than {', '.join(named)} and {', '.join(configs)}")
    predicted = errors.assign(**{DENSE: 0.0}).to_dict()
    chosen = _solve(sizes, predicted, target - rest)
    rows = [(g, c, sizes[c][g], float(predicted[c][g])) for g, c in chosen.items()]
    choice = pd.DataFrame(rows, columns=["group", "scheme", "bytes", "error"]).set_index("group")
    config = _config(model, named, chosen, plans, pointwise_as_linear)
    return Budget(config, rest + int(choice["bytes"].sum()), float(choice["error"].sum()), choice, errors)


def _errors(
    model: nn.Module,
    config: ModelOptConfig,
    calls: Sequence[ModelCall],
    groups: Mapping[str, Sequence[str]],
    method: str,
    progress: bool,
) -> Mapping[str, float]:
    if method == "auto_quantize":
        return gradient_scores(model, config, calls, groups, progress)
    return sensitivity(model, config, calls, groups, without=False, progress=progress)["error alone"]


def _sizes(groups: Mapping[str, Sequence[str]], layers: Mapping[str, LayerPlan]) -> dict[str, int]:
    """The bytes of every group under one plan; a layer that it cannot pack counts dense."""
    return {group: sum(layers[name].packed_bytes for name in names) for group, names in groups.items()}


def _solve(
    sizes: Mapping[str, Mapping[str, int]], errors: Mapping[str, Mapping[str, float]], limit: float
) -> dict[str, str]:
    """One scheme a group: the least sum of errors whose sum of bytes is within ``limit``."""
    import pulp

    groups = list(next(iter(sizes.values())))
    worst = max(errors[c][g] for c in sizes for g in groups) or 1.0
    problem = pulp.LpProblem("budget", pulp.LpMinimize)
    take = {
        (g, c): pulp.LpVariable(f"x_{i}_{j}", cat="Binary") for i, g in enumerate(groups) for j, c in enumerate(sizes)
    }
    problem += pulp.lpSum(float(errors[c][g]) / worst * x for (g, c), x in take.items())
    for g in groups:
        problem += pulp.lpSum(take[g, c] for c in sizes) == 1
    problem += pulp.lpSum(sizes[c][g] / MIB * x for (g, c), x in take.items()) <= limit / MIB
    status = problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=1e-9))
    if pulp.LpStatus[status] != "Optimal":
        raise RuntimeError(f"the solver ended with {pulp.LpStatus[status]!r}")
    return {g: next(c for c in sizes if take[g, c].value() > 0.5) for g in groups}


def _config(
    model: nn.Module,
    groups: Mapping[str, Sequence[str]],
    chosen: Mapping[str, str],
    plans: Mapping[str, Mapping[str, LayerPlan]],
    pointwise_as_linear: bool,
) -> ModelOptConfig:
    """The configuration in which each group has its scheme: the one with the most layers first, the others mixed in."""
    layers = [x for x in next(iter(plans.values()))]
    by_scheme: dict[str, set[str]] = {}
    for group, scheme in chosen.items():
        by_scheme.setdefault(scheme, set()).update(groups[group])
    base = max((c for c in by_scheme if c != DENSE), key=lambda c: len(by_scheme[c]), default=next(iter(plans)))
    mixed = {c: _cover(names, layers) for c, names in by_scheme.items() if c not in (DENSE, base)}
    listed = {name for names in by_scheme.values() for name in names}
    spared = by_scheme.get(DENSE, set()) | {n for n, x in plans[base].items() if x.packed and n not in listed}
    arguments: dict[str, Any] = {"modules_to_not_convert": _cover(spared, layers)} if spared else {}
    return make_config(base, per_layer=mixed, pointwise_as_linear=pointwise_as_linear, **arguments)


def _cover(names: Container[str], layers: Iterable[str], at: str = "") -> list[str]:
    """The fewest names of modules that hold exactly the ``names`` among ``layers``."""
    inside = [layer for layer in layers if f"{layer}.".startswith(at)]
    if not any(layer in names for layer in inside):
        return []
    if at and all(layer in names for layer in inside):
        return [at.removesuffix(".")]
    children = dict.fromkeys(at + layer.removeprefix(at).split(".")[0] + "." for layer in inside)
    return [name for child in children for name in _cover(names, inside, child)]
