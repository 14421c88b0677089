import json

import pytest
import torch

from modelopt_nb import load_pipeline
from modelopt_nb.lab.pipelines.load import component_name, is_embedded


def test_the_embedded_pipeline_is_a_complete_sana_pipeline(pipeline):
    assert type(pipeline).__name__ == "SanaPipeline"
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert kinds["transformer"] == "SanaTransformer2DModel"
    assert kinds["vae"] == "AutoencoderDC"
    assert kinds["text_encoder"].startswith("Gemma2")
    assert kinds["tokenizer"].startswith("Gemma")
    assert pipeline.transformer.dtype == torch.float32
    assert is_embedded(pipeline)
    assert not is_embedded(type(pipeline)(**pipeline.components))


@pytest.mark.parametrize("path", ["data/nothing/here", "./nothing", "/nowhere/at/all", "notebooks"])
def test_a_path_that_is_no_pipeline_folder(path):
    with pytest.raises(FileNotFoundError, match=r"name_or_path='.*' is not a pipeline folder"):
        load_pipeline(path)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "NewPipeline"}, "the pipeline is a 'NewPipeline', which diffusers .* does not have. Allowed"),
        ({"unet": ["diffusers", "New"]}, "unet is a 'New', which diffusers .* does not have. Allowed"),
        ({"text_encoder": ["transformers", 5]}, "text_encoder is a 5, which transformers .* does not have. Allowed"),
        (None, "not a valid JSON file"),
    ],
)
def test_an_index_that_cannot_be_loaded(hub, change, message, tmp_path):
    index = {"_class_name": "DiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": [None, None]}
    folder = tmp_path / "models--someone--new" / "snapshots" / "0123456789"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{" if change is None else json.dumps(index | change))
    (tmp_path / "models--someone--new" / "refs").mkdir()
    (tmp_path / "models--someone--new" / "refs" / "main").write_text("0123456789")
    options = {"cache_dir": tmp_path, "local_files_only": True} if hub else {}
    with pytest.raises((ValueError, OSError), match=message):
        load_pipeline("someone/new" if hub else folder, **options)


def test_component_name(pipeline):
    assert component_name(pipeline) == "transformer"
    assert component_name(pipeline, "text_encoder") == "text_encoder"
    with pytest.raises(ValueError, match=r"component='unet' is not a model.*transformer"):
        component_name(pipeline, "unet")
