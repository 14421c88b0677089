"""A variant as chosen in a widget: its fields, their alternatives, and why some cannot work."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from modelopt_nb import (
    ACTIVATION_SCALES,
    NEED_LOOP,
    QUANT_TYPES,
    SCHEMES,
    ModelOptConfig,
    check_algorithm,
    make_config,
    plan,
)
from modelopt_nb.lab.search.algorithms import ALGORITHMS, check_scheme

#: Block sizes that are offered.
BLOCKS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Choice:
    """A variant in few words, for :func:`modelopt_nb.make_config`.

    Args:
        scheme: A name in ``SCHEMES``.
        block: Block size; the scheme's own if None.
        activations: A quant type for the activations; empty for weights only.
        scale: A name in ``ACTIVATION_SCALES``; empty for the quant type's own.
        algorithm: A calibration algorithm of ModelOpt.
        pointwise: Pack 1x1 convolutions as linear layers; False leaves them dense in 4 bits.
        excluded: Names or patterns of layers to leave dense (``modules_to_not_convert``).
    """

    scheme: str = "INT8"
    block: int | None = None
    activations: str = ""
    scale: str = ""
    algorithm: str = "max"
    pointwise: bool = True
    excluded: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: "str | Mapping[str, Any] | Choice") -> "Choice":
        """Make a choice from a scheme's name or a dict of fields, whose values :func:`why_not` checks."""
        if isinstance(asked, Choice):
            return asked
        if isinstance(asked, str):
            return cls(scheme=asked)
        known = [f.name for f in fields(cls)]
        if not isinstance(asked, Mapping) or not asked.keys() <= set(known):
            raise TypeError(f"variants holds {asked!r}. Allowed: a scheme's name, or a dict with {', '.join(known)}")
        excluded = asked.get("excluded", ())
        excluded = (excluded,) if isinstance(excluded, str) else tuple(excluded)
        if not all(isinstance(name, str) for name in excluded):
            raise TypeError(f"excluded={excluded!r} is not allowed. Allowed: names or patterns of layers")
        plain = (str, int, float, type(None))  # a choice is hashable, whatever the view sends
        values: dict[str, Any] = {name: v if isinstance(v, plain) else repr(v) for name, v in asked.items()}
        values["excluded"] = excluded
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; :meth:`of` takes them back."""
        return asdict(self) | {"excluded": list(self.excluded)}

    @property
    def name(self) -> str:
        """A short name, different for different choices."""
        parts = [self.scheme, f"b{self.block}" if self.block is not None else ""]
        parts += [f"+ {self.activations} {self.scale}".strip() if self.activations else ""]
        parts += [self.algorithm if self.algorithm != "max" else "", "" if self.pointwise else "1x1 dense"]
        parts += [f"without {', '.join(self.excluded)}" if self.excluded else ""]
        return " ".join(part for part in parts if part)

    def options(self) -> tuple[str, dict[str, Any]]:
        """Return the quant type and options for :func:`modelopt_nb.make_config`. Raises ValueError, TypeError."""
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is not known. Allowed: {', '.join(SCHEMES)}")
        for name in ("activations", "scale", "algorithm"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={getattr(self, name)!r} is not a name")
        quant_type, defaults = SCHEMES[self.scheme]
        options: dict[str, Any] = {**defaults, "algorithm": self.algorithm, "pointwise_as_linear": self.pointwise}
        if self.block is not None:
            options |= {"channel_quantize": -1, "block_quantize": self.block}
        if self.scale:
            options["activation_scale"] = self.scale
        return f"{quant_type}_{self.activations}" if self.activations else quant_type, options

    @property
    def calibrates(self) -> bool:
        """Whether the choice needs a forward loop."""
        return bool(self.activations) or self.algorithm in NEED_LOOP

    def config(self, forward_loop: Callable[[nn.Module], None]) -> ModelOptConfig:
        """Make the configuration, with ``forward_loop`` if it calibrates. Raises as :func:`modelopt_nb.make_config`."""
        quant_type, options = self.options()
        loop = forward_loop if self.calibrates else None
        return make_config(quant_type, list(self.excluded), forward_loop=loop, **options)


@functools.lru_cache(maxsize=4096)
def why_not(choice: Choice) -> str:
    """Return why a choice cannot work on this machine with any model, or an empty string.

    Activations and algorithms are tried on a tiny layer.
    """
    try:
        config = choice.config(lambda model: None)
        check_algorithm(config, config.forward_loop)
    except (ValueError, TypeError) as error:
        return str(error)
    if not choice.activations and choice.algorithm == "max":
        return ""
    quant_type, options = choice.options()
    verdict = check_scheme(quant_type, **options)
    return "" if verdict == "runs" else verdict


def problems(choice: Choice, model: nn.Module) -> dict[str, str]:
    """Return the first field that does not go with those before it, and why; empty if the choice suits ``model``."""
    built = Choice(pointwise=choice.pointwise)
    for name in ("scheme", "block", "activations", "scale", "algorithm"):
        built = replace(built, **{name: getattr(choice, name)})
        if reason := why_not(built):
            return {name: reason}
    try:
        plan(model, choice.config(lambda model: None))
    except (ValueError, TypeError) as error:
        return {"excluded": str(error)}
    return {}


def alternatives(choice: Choice) -> dict[str, list[list[Any]]]:
    """Return the values that each field of a choice could have, each as [value, label, why it cannot work or empty]."""
    labels: dict[str, dict[Any, str]] = {
        "scheme": {name: name for name in SCHEMES},
        "block": {None: "the scheme's own", **{size: str(size) for size in BLOCKS}},
        "activations": {"": "none", **{name: name for name, t in QUANT_TYPES.items() if t.activations}},
        "scale": {"": "the type's own", **{name: name for name in ACTIVATION_SCALES}},
        "algorithm": {name: name for name in ALGORITHMS},
    }
    # Judge a field without those that depend on it: their own values then show what does not fit.
    bases = {"scheme": Choice(), "block": Choice(choice.scheme)}
    bases["activations"] = replace(choice, scale="", algorithm="max")

    def judge(name: str, value: Any) -> str:
        base = bases.get(name, choice if choice.scheme in SCHEMES else Choice())
        return why_not(replace(base, excluded=(), **{name: value}))

    return {
        name: [[value, label, judge(name, value)] for value, label in values.items()] for name, values in labels.items()
    }
