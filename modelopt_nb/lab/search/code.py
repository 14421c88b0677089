"""Write a configuration as Python."""

import inspect

from modelopt_nb import ModelOptConfig


def config_code(config: ModelOptConfig) -> str:
    """Return the call of ``make_config`` that builds ``config``; a forward loop is named ``forward_loop``."""
    if not isinstance(config, ModelOptConfig):
        raise TypeError(f"config={config!r} is not a ModelOpt configuration. Build one with make_config('FP8')")
    default = ModelOptConfig(config.quant_type)
    asked = [repr(config.quant_type)]
    for name in inspect.signature(ModelOptConfig).parameters:
        value = getattr(config, name, None)
        special = name in ("quant_type", "algorithm", "forward_loop", "modelopt_config", "packed_dtype")
        if not special and value != getattr(default, name, None):
            asked.append(f"{name}={value!r}")
    if config.algorithm != default.algorithm:
        asked.append(f"algorithm={config.algorithm!r}")
    if config.forward_loop is not None:
        asked.append("forward_loop=forward_loop")
    line = f"make_config({', '.join(asked)})"
    return line if len(line) <= 100 else "make_config(\n    " + ",\n    ".join(asked) + ",\n)"
