"""modelopt_nb: quantize diffusion models with NVIDIA ModelOpt, and see what it does to the pictures.

Names are loaded at first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "QUANT_TYPES": "config",
    "SCHEMES": "config",
    "make_config": "config",
    "config_code": "config",
    "KINDS": "selection",
    "layer_frame": "selection",
    "layer_groups": "selection",
    "select": "selection",
    "Call": "calibration",
    "capture": "calibration",
    "activation_ranges": "calibration",
    "denoising_loop": "calibration",
    "load_calls": "calibration",
    "recorded": "calibration",
    "replay_loop": "calibration",
    "save_calls": "calibration",
    "sensitivity": "experiments",
    "Budget": "budget",
    "fit_budget": "budget",
    "enable": "upstream",
    "doctor": "checkup",
    "ACTIVATION_SCALES": "config",
    "ALGORITHMS": "checkup",
    "algorithm_table": "checkup",
    "try_scheme": "checkup",
    "Report": "quantization",
    "dequantized": "quantization",
    "quantize": "quantization",
    "representable_values": "quantization",
    "weight_errors": "quantization",
    "WeightBytes": "memory",
    "peak_memory": "memory",
    "weight_bytes": "memory",
    "export": "deployment",
    "load_pipeline": "pipeline",
    "Comparison": "comparison",
    "compare": "comparison",
    "load_prompts": "reader",
    "load_reader": "reader",
    "read": "reader",
    "reader_distance": "reader",
    "clip_score": "metrics",
    "lpips": "metrics",
    "psnr": "metrics",
    "ssim": "metrics",
    "Explorer": "explorer",
    "SpotTheQuantized": "blind",
    "plot_difference": "plots",
    "plot_errors": "plots",
    "plot_format": "plots",
    "plot_frontier": "plots",
    "plot_grid": "plots",
    "plot_layers": "plots",
    "plot_pictures": "plots",
    "plot_quality": "plots",
    "plot_ranges": "plots",
    "plot_schemes": "plots",
    "plot_sensitivity": "plots",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
