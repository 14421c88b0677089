"""The doc's three code blocks, as it has them, on the embedded pipeline."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelopt_nb.pipeline import EMBEDDED

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent / "seed-modelopt-doc.md").read_text("utf-8"), re.S)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def adapted(block: str, keyword: str) -> str:
    """The block with what has to differ here, and nothing else."""
    changes = {
        '"Efficient-Large-Model/Sana_600M_1024px_diffusers"': repr(str(EMBEDDED)),
        '"cuda"': repr(DEVICE),
        "save_pretrained('path/to/sana_fp8'": "save_pretrained('path/to/sana_fp8/transformer'",  # the doc's own slip
        "torch_dtype=": keyword,
    }
    for old, new in changes.items():
        block = block.replace(old, new)
    return "import modelopt_nb; modelopt_nb.enable()\n" + block


def test_the_doc_has_three_blocks():
    assert len(BLOCKS) == 3
    assert sum("enable_huggingface_checkpointing()" in block for block in BLOCKS) == 2


@pytest.mark.filterwarnings(
    "ignore:You passed `quantization_config`"
)  # the doc's third block does, and Diffusers says so
@pytest.mark.parametrize("keyword", ["torch_dtype=", "dtype="])
def test_the_docs_code_runs(keyword, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = []
    for block in BLOCKS:
        names: dict = {}
        exec(compile(adapted(block, keyword), "seed", "exec"), names)
        model = names.get("transformer") or names["model"]
        assert model.hf_quantizer.report.packed_of_bf16 < 0.53
        if "pipe" in names:
            pictures.append(np.asarray(Image.open("output.png")))
    drawn, restored = pictures
    assert drawn.shape == restored.shape == (1024, 1024, 3)  # SanaPipeline's own default size
    assert drawn.std() > 5  # not a blank page
    assert restored.std() > 5
