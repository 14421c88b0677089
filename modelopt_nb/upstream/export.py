"""Write checkpoints with ModelOpt's exporter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint
from torch import nn

from modelopt_nb.upstream.quiet import quiet


def export_checkpoint(
    model: nn.Module, algorithm: dict[str, Any], forward_loop: Callable[[nn.Module], None] | None, folder: Path
) -> None:
    """Calibrate a model that has quantizers, and write it with ``export_hf_checkpoint``."""
    with quiet():
        mtq.calibrate(model, algorithm, forward_loop)
        export_hf_checkpoint(model, export_dir=folder)
