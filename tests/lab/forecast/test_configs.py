"""Where configurations come from, and one sentence for each thing that is wrong with them."""

import json

import diffusers
import pytest
import torch
import transformers
from huggingface_hub import errors

from modelopt_nb import forecast, load_pipeline
from modelopt_nb.lab.forecast import configs
from modelopt_nb.lab.pipelines.load import EMBEDDED

NAMES = ["transformer", "text_encoder", "vae"]


@pytest.fixture
def folder(tmp_path):
    """The embedded pipeline's configurations, without weights."""
    for path in EMBEDDED.rglob("*.json"):
        target = tmp_path / path.relative_to(EMBEDDED)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_of_configurations_a_loaded_pipeline_and_its_model_agree(folder):
    pipeline = load_pipeline(device="cpu")
    results = [forecast(x, ["FP8", "INT4"]) for x in (folder, str(folder), None, pipeline)]
    assert {c.name for c in results[0].components} == set(NAMES)
    assert all(x.frame.equals(results[0].frame) for x in results[1:])
    assert not list(folder.rglob("*.safetensors"))
    model = forecast(pipeline.transformer, ["FP8", "INT4"]).frame["model GiB"]
    single = forecast(folder / "transformer", ["FP8", "INT4"]).frame["model GiB"]
    assert model.tolist() == single.tolist() == results[0].frame["transformer GiB"].tolist()


def test_a_configuration_alone(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert forecast(config, ["FP8"]).components[0].kind == "SanaTransformer2DModel"
    clip = transformers.CLIPTextConfig().to_dict() | {"architectures": ["CLIPTextModel"]}
    assert forecast({"text_encoder": clip}, ["FP8"]).components[0].parameters > 1e7


def test_a_hub_id_reads_configurations_only(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: asked.append(name) or folder / name)
    assert forecast("someone/pipeline", ["FP8"]).frame.equals(forecast(folder, ["FP8"]).frame)
    assert asked and all(name.endswith(".json") for name in asked)


def hub_error(cls):
    import httpx

    def fail(repo, name):
        if issubclass(cls, errors.HfHubHTTPError):
            raise cls("no", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))
        raise cls("no")

    return fail


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.GatedRepoError, "is gated: accept its terms"),
        (errors.RepositoryNotFoundError, "does not exist or is private"),
        (errors.LocalEntryNotFoundError, "check its name and the network"),
        (errors.OfflineModeIsEnabled, "check its name and the network"),
        (errors.HFValidationError, "check its name and the network"),
        (OSError, "check its name and the network"),
    ],
)
def test_a_hub_that_does_not_answer(error, hint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub_error(error))
    with pytest.raises(ConnectionError, match=hint):
        forecast("someone/pipeline")


def test_a_hub_repository_without_a_pipeline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub_error(errors.EntryNotFoundError))
    with pytest.raises(FileNotFoundError, match=r"the hub's someone/llm has neither model_index.json nor config.json"):
        forecast("someone/llm")


def test_folders_that_are_no_pipeline(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither model_index.json nor config.json. Allowed: a pipeline"):
        forecast(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "yolo"}')
    with pytest.raises(ValueError, match=r"'model' names no class. Allowed: a config.json with _class_name"):
        forecast(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        forecast(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no name in architectures\(\): CogVideoX-5B, FLUX.1-dev"):
        forecast("FLUX.9")
    with pytest.raises(TypeError, match="model_or_config is a int"):
        forecast(3)


def test_classes_and_configurations_that_do_not_exist(folder):
    index = json.loads((folder / "model_index.json").read_text())
    edit(folder / "model_index.json", transformer=["diffusers", "Flux9Transformer"])
    with pytest.raises(ValueError, match=r"component 'transformer' is a Flux9Transformer, which Diffusers .* Update"):
        forecast(folder)
    edit(folder / "model_index.json", transformer=["my_code", "MyTransformer"])
    with pytest.raises(ValueError, match="'transformer' is a MyTransformer"):
        forecast(folder)
    edit(folder / "model_index.json", **index)
    edit(folder / "transformer" / "config.json", num_layers="many")
    with pytest.raises(ValueError, match=r"SanaTransformer2DModel cannot be built from its configuration: .* Check"):
        forecast(folder)
    with pytest.raises(ValueError, match="'model' is a Flux9Transformer"):
        forecast({"_class_name": "Flux9Transformer"})
    (folder / "transformer" / "config.json").unlink()
    assert "Left out: transformer, it has no transformer/config.json" in repr(forecast(folder, component="vae"))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"memory": "a lot"}, ValueError, "memory='a lot' is not a size. Allowed: such as '24 GiB'"),
        ({"memory": "24 gib"}, ValueError, "memory='24 gib' is not a size"),
        ({"memory": 0}, ValueError, "memory=0 is not a size"),
        ({"memory": True}, ValueError, "memory=True is not a size"),
        ({"schemes": ["FP5"]}, ValueError, "quant_type='FP5'"),
        ({"schemes": ["FP8 fast"]}, ValueError, "'FP8 fast' is not a scheme. Allowed: FP8,"),
        ({"schemes": "FP8"}, TypeError, "schemes='FP8' is not a list of schemes"),
        ({"schemes": [8]}, TypeError, "is not a list of schemes"),
        ({"component": "unet"}, ValueError, "'unet' is not a model of this pipeline. Allowed: transformer, "),
        ({"margin": 2}, ValueError, "margin=2 is not a share"),
        ({"height": 0}, ValueError, "height=0 is not a size"),
        ({"num_frames": 1.5}, ValueError, "num_frames=1.5 is not a size"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text.replace("(", r"\(")):
        forecast("Sana-0.6B", **arguments)


def test_a_component_without_linear_layers():
    class Norm(diffusers.ModelMixin, diffusers.ConfigMixin):
        config_name = "config.json"

        @diffusers.configuration_utils.register_to_config
        def __init__(self, size: int = 8):
            super().__init__()
            self.norm = torch.nn.LayerNorm(size)

    with pytest.raises(ValueError, match="component='model' stays dense: .*has nothing to quantize"):
        forecast(Norm(), component="model")
    assert forecast(Norm(), ["FP8"]).frame["model GiB"].nunique() == 1
    with pytest.raises(ValueError, match="Linear has no configuration"):
        forecast(torch.nn.Linear(2, 2))


def test_architectures_are_files():
    assert configs.architectures() == sorted(path.stem for path in configs.SHIPPED.iterdir())
