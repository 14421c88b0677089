"""Save training checkpoints atomically; load them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Save the state of ``parts`` after ``step`` steps; the write is atomic."""
    temporary = path.with_suffix(".part")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, **parts: Any) -> int:
    """Restore ``parts`` from ``path`` and return the number of finished steps; 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
