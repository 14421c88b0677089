"""Match patterns against layer names: the one pattern language of the kit."""

import difflib
import fnmatch
import warnings
from collections.abc import Container, Iterable


def as_patterns(argument: str, value: str | Iterable[str] | None) -> list[str]:
    """Return names or patterns as a new list. Raises ValueError, naming ``argument``, if one is empty or no string."""
    if value is not None and not isinstance(value, Iterable):
        raise TypeError(f"{argument}={value!r} is not a list. Allowed: module names or patterns, as strings")
    patterns = [] if value is None else [value] if isinstance(value, str) else list(value)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip():
            raise ValueError(f"{argument} holds {pattern!r}. Allowed: module names or patterns, as strings")
    return patterns


def matches(pattern: str, layer: str, modules: Container[str]) -> bool:
    """Return whether ``pattern`` matches a layer's name, in a model that has these ``modules``.

    The whole name of a module matches the module and all in it. Anything else is a part of a name, or a shell-style
    pattern of one, as in Diffusers' ``modules_to_not_convert``; ``.weight`` at its end is ignored.
    """
    pattern = pattern.removesuffix(".weight")
    if pattern in modules:
        return f"{layer}.".startswith(f"{pattern}.")
    return fnmatch.fnmatchcase(layer, f"*{pattern}*")


def matching_layers(
    model: object, argument: str, pattern: str, layers: Iterable[str], modules: Container[str], lenient: bool = False
) -> list[str]:
    """List the ``layers`` that ``pattern`` matches. If none, raises ValueError, or warns if ``lenient``."""
    layers = list(layers)
    if found := [layer for layer in layers if matches(pattern, layer, modules)]:
        return found
    parts = sorted({part for layer in layers for part in (layer, *layer.split("."))})
    close = difflib.get_close_matches(pattern, parts, n=3, cutoff=0.4) or layers[:1]
    name = model if isinstance(model, str) else type(model).__name__
    wrong = f"{argument} holds {pattern!r}, which matches no layer of {name}. Nearest: {', '.join(close)}"
    if not lenient:
        raise ValueError(wrong)
    warnings.warn(wrong, stacklevel=2)
    return []
