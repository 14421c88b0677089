"""Remember dtypes from one load to the next: in the configuration, and in the headers of the files."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def copied(config: Any) -> Any:
    """Copy a configuration deeply, but for its forward loop, which may hold a pipeline."""
    return copy.deepcopy(config, {id(config.forward_loop): config.forward_loop})


def main_dtype(saved: str | Mapping[str, str]) -> str:
    """Return the dtype of most layers."""
    return saved if isinstance(saved, str) else Counter(saved.values()).most_common(1)[0][0]


def stored_dtypes(files: Sequence[Path]) -> dict[str, str]:
    """Return the dtype of every tensor in safetensors files; "" if it is no float of 16 bits or more."""
    found: dict[str, str] = {}
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: FLOATS.get(file.get_slice(name).get_dtype(), "") for name in file.keys()}  # noqa: SIM118
    return found
