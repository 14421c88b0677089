"""Forecast what a pipeline needs under each scheme, and whether it fits, from its configurations alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from modelopt_nb import SCHEMES
from modelopt_nb.lab.compare.table import Table
from modelopt_nb.lab.compare.variants import DENSE
from modelopt_nb.lab.forecast.activations import RULE, activations
from modelopt_nb.lab.forecast.configs import architectures, read_parts
from modelopt_nb.lab.forecast.meta import ComponentForecast, forecast_component

GIB = 2**30
UNITS = {"": 1, "B": 1} | {f"{p}{unit}": base**i for unit, base in (("iB", 1024), ("B", 1000))
                           for i, p in enumerate("KMGT", 1)}  # fmt: skip
DENOISERS = ("transformer", "transformer_2", "unet", "model")
#: What ``fits`` says, best first.
WAYS = ("yes", "encoders too", "offloaded", "no")


@dataclass(frozen=True, repr=False)
class Forecast:
    """The result of :func:`modelopt_nb.forecast`; notebooks show its table. Sizes are bytes.

    ``quantized`` names the components that a scheme packs. ``activations`` is an estimate, by ``RULE``.
    """

    name: str
    components: tuple[ComponentForecast, ...]
    quantized: tuple[str, ...]
    memory: int
    margin: float
    activations: int
    size: str
    left_out: Mapping[str, str]

    @property
    def frame(self) -> pd.DataFrame:
        """One row per scheme, dense first: GiB of each component, and in all.

        ``weights`` have the ``quantized`` components packed, ``encoders too`` all but the autoencoder; ``needed`` is
        weights and activations. ``fits`` is yes; or what else it takes: packed encoders, or these and offloading, which
        keeps one component at a time on the device; or no.
        """
        rows = {}
        for scheme in (DENSE, *self.components[0].packed):
            sizes = {c.name: c.packed.get(scheme, c.dense) for c in self.components}
            some = sum(sizes[c.name] if c.name in self.quantized else c.dense for c in self.components)
            most = {c.name: c.dense if c.is_codec and c.name not in self.quantized else sizes[c.name]
                    for c in self.components}  # fmt: skip
            room = self.memory * (1 - self.margin) - self.activations
            fits = (size <= room for size in (some, sum(most.values()), max(most.values())))
            numbers = {"weights": some, "encoders too": sum(most.values()), "needed": some + self.activations}
            way = next((way for way, fit in zip(WAYS, fits, strict=False) if fit), WAYS[-1])
            rows[scheme] = {f"{name} GiB": size / GIB for name, size in (sizes | numbers).items()} | {"fits": way}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scheme")

    @property
    def dense(self) -> pd.DataFrame:
        """What stays dense in the quantized components, and why: layers and MiB by scheme, component and reason."""
        keys = ["scheme", "component", "reason", "layers", "MiB"]
        rows = [
            (scheme, c.name, reason, layers, size / 2**20)
            for c in self.components if c.name in self.quantized
            for scheme, reasons in c.reasons.items() for reason, (layers, size) in reasons.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=keys).set_index(keys[:3])

    def table(self) -> Table:
        """Return :attr:`frame` with three significant digits, and in the caption what the numbers are about."""
        text = f"{self.name}, {self.size}; {', '.join(self.quantized)} packed; {self.memory / GIB:.1f} GiB of memory, "
        text += f"{self.margin:.0%} of it spare; activations {self.activations / GIB:.2g} GiB. {RULE}"
        text += "".join(f" Left out: {name}, {why}." for name, why in self.left_out.items())
        return Table(self.frame.map(lambda x: f"{x:.3g}" if isinstance(x, float) else x), text)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def forecast(
    model_or_config: Any = None, schemes: Sequence[str] | None = None, memory: str | int = "24 GiB", *,
    component: str | Iterable[str] | None = None, dtype: torch.dtype = torch.bfloat16, margin: float = 0.1,
    height: int | None = None, width: int | None = None, num_frames: int | None = None, batch: int | None = None,
) -> Forecast:  # fmt: skip
    """Forecast the bytes of every component under every scheme, and whether they fit; no weight is downloaded or made.

    Args:
        model_or_config: A folder or a hub id, of which only ``model_index.json`` and each ``config.json`` are read; a
            name in :func:`architectures`; a configuration, or several by component; a loaded pipeline or model; None
            for the embedded pipeline.
        schemes: Names as for :func:`modelopt_nb.make_config`; by default all in :data:`SCHEMES`. 1x1 convolutions are
            packed as linear layers.
        memory: Of the device, such as ``"24 GiB"``, ``"24 GB"``, or bytes.
        component: What a scheme packs; by default the transformers or the UNet.
        dtype: Of everything that is not packed.
        margin: Share of ``memory`` to keep spare, for the allocator, kernels and the display.
        height, width, num_frames, batch: Pixels, frames, and inputs of one step (2 with classifier-free guidance); by
            default those of the published pipeline.

    Raises:
        TypeError, ValueError: A wrong argument, a class that the installed releases do not have, or a component that no
            scheme packs.
        FileNotFoundError, ConnectionError: No such folder or name; a missing or gated repository, or no network.
    """
    schemes = list(SCHEMES) if schemes is None else schemes
    if not isinstance(schemes, (list, tuple)) or not all(isinstance(scheme, str) for scheme in schemes):
        raise TypeError(f"schemes={schemes!r} is not a list of schemes. Allowed: {', '.join(SCHEMES)}")
    for name, value in (asked := {"height": height, "width": width, "num_frames": num_frames, "batch": batch}).items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r} is not a size. Allowed: a whole number of 1 or more, or None")
    if not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise ValueError(f"margin={margin!r} is not a share of the memory. Allowed: 0 up to, but not, 1")
    available, source = parse_memory(memory), read_parts(model_or_config)
    names = tuple(dict.fromkeys(scheme for scheme in schemes if scheme != DENSE))
    ordered = sorted(source.parts, key=lambda part: (part.name not in DENOISERS, part.name))
    parts = tuple(forecast_component(part, names, dtype) for part in ordered)
    quantized = _quantized(parts, component)
    main = next(part for part in parts if part.name == quantized[0])
    size = {**source.size, **{name: value for name, value in asked.items() if value is not None}}
    estimate, text = activations(main, next((part for part in parts if part.is_codec), None), size, dtype)
    return Forecast(source.title, parts, quantized, available, margin, estimate, text, source.left_out)


def afford(
    models: Iterable[Any] | None = None, memories: Sequence[str] = ("8 GiB", "16 GiB", "24 GiB", "80 GiB"),
    schemes: Sequence[str] = (DENSE, "FP8", "NVFP4"),
) -> pd.DataFrame:  # fmt: skip
    """Return what fits: a row per model, a column per memory.

    A cell has the first of ``schemes`` that fits, with ", encoders too" or ", offloaded" if it takes that
    (:attr:`Forecast.frame`), or "no". ``models`` are as for :func:`forecast`; by default all :func:`architectures`.
    """
    rows: dict[str, dict[str, str]] = {}
    for known in (forecast(model, schemes) for model in (architectures() if models is None else models)):
        row = rows[known.name] = {}
        for memory in memories:
            fits = replace(known, memory=parse_memory(memory)).frame["fits"][list(schemes)]
            way = min(fits, key=WAYS.index)
            row[memory] = {"yes": (first := str(fits.eq(way).idxmax())), "no": "no"}.get(way, f"{first}, {way}")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def parse_memory(memory: str | int) -> int:
    """Return bytes. Raises ValueError for what is no size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(\w*)\s*", str(memory))
    if isinstance(memory, bool) or not found or found[2] not in UNITS or not float(found[1]):
        raise ValueError(f"memory={memory!r} is not a size. Allowed: such as '24 GiB', '24 GB', or bytes as a number")
    return int(float(found[1]) * UNITS[found[2]])


def _quantized(parts: Sequence[ComponentForecast], component: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the components that a scheme packs. Raises ValueError for a wrong name, or one that no scheme packs."""
    known = {part.name: part for part in parts}
    if component is None:
        return tuple(n for n in DENOISERS if n in known) or (max(parts, key=lambda part: part.dense).name,)
    for name in (names := (component,) if isinstance(component, str) else tuple(component)):
        if name not in known:
            raise ValueError(f"component={name!r} is not a model of this pipeline. Allowed: {', '.join(known)}")
        if known[name].packed and set(known[name].packed.values()) == {known[name].dense}:
            why = "; ".join(dict.fromkeys(reason for reasons in known[name].reasons.values() for reason in reasons))
            raise ValueError(f"component={name!r} stays dense: {why}. Allowed: another component")
    return names
