"""The three code blocks of Diffusers' ModelOpt page, unchanged, on the embedded pipeline."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelopt_nb.lab.pipelines.load import EMBEDDED

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent / "seed-modelopt-doc.md").read_text("utf-8"), re.S)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def adapted(block: str, keyword: str, steps: int) -> str:
    """Return a block with only what must differ here replaced."""
    changes = {
        '"Efficient-Large-Model/Sana_600M_1024px_diffusers"': repr(str(EMBEDDED)),
        '"cuda"': repr(DEVICE),
        "save_pretrained('path/to/sana_fp8'": "save_pretrained('path/to/sana_fp8/transformer'",  # the page's own slip
        "torch_dtype=": keyword,
        "num_inference_steps=50": f"num_inference_steps={steps}",
    }
    for old, new in changes.items():
        block = block.replace(old, new)
    return "import modelopt_nb; modelopt_nb.enable()\n" + block


def test_the_page_has_three_blocks():
    assert len(BLOCKS) == 3
    assert sum("enable_huggingface_checkpointing()" in block for block in BLOCKS) == 2


# the third block passes one for a packed checkpoint, and Diffusers warns
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(("keyword", "steps"), [("torch_dtype=", [50, 5, 5]), ("dtype=", [5, 5, 5])])
def test_the_pages_code_runs(keyword, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = []
    for block, count in zip(BLOCKS, steps, strict=True):
        names: dict = {}
        exec(compile(adapted(block, keyword, count), "seed", "exec"), names)
        model = names.get("transformer") or names["model"]
        assert model.hf_quantizer.report.packed_of_bf16 < 0.53
        if "pipe" in names:
            images.append(np.asarray(Image.open("output.png")))
    packed, restored = images
    assert packed.shape == restored.shape == (1024, 1024, 3)  # SanaPipeline's own default size
    assert packed.std() > 5  # not blank
    assert restored.std() > 5
