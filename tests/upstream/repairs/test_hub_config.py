"""A damaged config.json of a hub id is named, before anything else is blamed; from a cache, no network is needed."""

import pytest
from diffusers import AutoModel

from modelopt_nb import CheckpointError, make_config, quantize
from modelopt_nb.upstream.repairs.atomic_save import manifest

COMMIT = "0123456789" * 4


@pytest.mark.parametrize("subfolder", [None, "transformer"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"SanaTransformer2DModel"', '"SanaTransformer9DModel"'), ('"num_layers": 1', '"num_layers": {}'),
        ('"quant_type": "INT8"', '"quant_type": "INT9"'), ('"sample_size"', '"sample_size'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_configuration_of_a_hub_id(old, new, subfolder, cached, transformer, tmp_path, monkeypatch):
    repo = tmp_path / "models--someone--packed"
    folder = repo / "snapshots" / COMMIT / (subfolder or "")
    quantize(transformer, make_config("INT8"))
    transformer.save_pretrained(folder)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    config, text = folder / "config.json", (folder / "config.json").read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    hidden = (folder / manifest.MANIFEST).rename(tmp_path / "kept") if not cached else None
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: hidden.rename(folder / manifest.MANIFEST))
    with pytest.raises(CheckpointError, match="config.json was altered"):
        AutoModel.from_pretrained("someone/packed", subfolder=subfolder, cache_dir=tmp_path, local_files_only=True)
