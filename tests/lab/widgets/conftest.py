from __future__ import annotations

import numpy as np
import pytest

from modelopt_nb import Variant, weight_bytes
from modelopt_nb.lab.compare.runner import Runner


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace generating and measuring by plain images with made-up numbers; returns the names in their order."""
    names = []

    def run(self, name, config, reference=None) -> Variant:
        names.append(name)
        image = np.random.default_rng(len(name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for _ in range(self.steps):
            self.tick()
        self.shown([image])
        psnr, ssim = ([], []) if config is None else ([30.0], [0.9])
        return Variant(name, weight_bytes(self.dense), 2**20, 0.01, [image], psnr, ssim)

    monkeypatch.setattr(Runner, "run", run)
    return names
