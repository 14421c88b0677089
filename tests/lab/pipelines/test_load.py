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


def test_component_name(pipeline):
    assert component_name(pipeline) == "transformer"
    assert component_name(pipeline, "text_encoder") == "text_encoder"
    with pytest.raises(ValueError, match=r"component='unet' is not a model.*transformer"):
        component_name(pipeline, "unet")
