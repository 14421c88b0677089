"""Checkpoints that an interrupted save cannot spoil."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Write the state of ``parts`` after ``step`` steps, beside ``path`` first, then in its place."""
    beside = path.with_suffix(".part")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, beside)
    os.replace(beside, path)


def load_checkpoint(path: Path, **parts: Any) -> int:
    """Restore ``parts`` from ``path`` and return how many steps were done; 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
