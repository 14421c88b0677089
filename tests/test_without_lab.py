"""The helper needs only torch, diffusers, accelerate and ModelOpt: the laboratory's packages are an extra."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAB = ("pandas", "matplotlib", "transformers", "anywidget", "skimage", "jupyterlab")


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that ``requirements`` need, by name."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [Requirement(text) for text in requirements]
    done = set()
    while wanted:
        requirement = wanted.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append(needed)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Return the interpreter of an environment with the helper's requirements and nothing else."""
    folder = tmp_path_factory.mktemp("helper") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    for distribution in closure(PROJECT["dependencies"]).values():
        for file in distribution.files or ():
            if file.parts[0] in ("..", "__pycache__"):
                continue
            top = Path(distribution.locate_file(file.parts[0]))
            if top.exists() and not (site / top.name).exists():
                (site / top.name).symlink_to(top)
    (site / "modelopt_nb").symlink_to(ROOT / "modelopt_nb")
    return next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())


def run(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


HELPER = f"""
import importlib.util, torch
assert not [name for name in {LAB} if importlib.util.find_spec(name)]
from diffusers import SanaTransformer2DModel
import modelopt_nb
from modelopt_nb import dequantized, make_config, peak_memory, quantize, weight_bytes

torch.manual_seed(0)
model = SanaTransformer2DModel(
    in_channels=32, out_channels=32, num_layers=1, num_attention_heads=4, attention_head_dim=32,
    num_cross_attention_heads=4, cross_attention_head_dim=32, cross_attention_dim=128, caption_channels=128,
    mlp_ratio=3.0, sample_size=16,
).eval()
inputs = {{"hidden_states": torch.randn(1, 32, 8, 8), "encoder_hidden_states": torch.randn(1, 6, 128),
          "timestep": torch.tensor([500.0])}}

def run(model):
    with torch.no_grad():
        return model(**inputs).sample

model.save_pretrained("dense")
config = make_config("INT8_INT8", pointwise_as_linear=True, forward_loop=run)
with peak_memory() as peak:
    report = quantize(model, config)
assert report.after == weight_bytes(model) and report.after.total < 0.4 * report.before.total
assert "packed" in str(report) and peak.tensors > 0
model.save_pretrained("packed")
restored = SanaTransformer2DModel.from_pretrained("packed")
loaded = SanaTransformer2DModel.from_pretrained("dense", quantization_config=config, dtype=torch.float32)
for other in (restored, loaded):
    assert torch.equal(run(other), run(model)) and weight_bytes(other) == weight_bytes(model)
with dequantized(model):
    assert torch.equal(run(model), run(restored))
print(*sorted(modelopt_nb.repair_states()))
print(*[name for name in {LAB} if name in __import__("sys").modules])
"""


def test_the_helper_works_without_the_laboratorys_packages(python, tmp_path):
    states, imported = run(python, HELPER, tmp_path).splitlines()
    assert "atomic-save" in states
    assert imported == ""


def test_the_laboratory_says_how_to_install_its_packages(python, tmp_path):
    code = """
import modelopt_nb
for name in ("compare", "layer_frame", "plot_grid", "Explorer"):
    try:
        getattr(modelopt_nb, name)
    except ImportError as error:
        assert 'pip install "modelopt-nb[lab]"' in str(error), error
        print(name)
"""
    assert run(python, code, tmp_path).split() == ["compare", "layer_frame", "plot_grid", "Explorer"]
