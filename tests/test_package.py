import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import modelopt_nb

ROOT = Path(__file__).parents[1]
DATA = {"QUANT_TYPES", "SCHEMES", "ACTIVATION_SCALES", "ALGORITHMS", "KINDS", "MIB", "NEED_LOOP", "__version__"}
HEAVY = {"torch", "diffusers", "modelopt", "numpy", "pandas", "matplotlib", "transformers", "skimage"}


def python(code: str) -> str:
    """Run ``code`` in a fresh process; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import modelopt_nb; print(time.perf_counter() - start)\n"
        f"print(*{HEAVY} & set(sys.modules))"
    )
    printed = [python(code).split("\n") for _ in range(3)]
    assert {heavy for _, heavy, *_ in printed} == {""}
    assert min(float(seconds) for seconds, *_ in printed) <= 0.1  # the fastest of three: others use the machine too


def test_every_public_name_exists_and_is_documented():
    for name in modelopt_nb.__all__:
        value = getattr(modelopt_nb, name)
        assert name in DATA or value.__doc__, name
    assert set(dir(modelopt_nb)) >= set(modelopt_nb.__all__)


def test_importing_a_module_hides_no_public_name():
    modules = {module.name for module in pkgutil.iter_modules(modelopt_nb.__path__)}
    assert "lab" in modules and not modules & set(modelopt_nb.__all__)
    importlib.import_module("modelopt_nb.verbs")
    importlib.import_module("modelopt_nb.lab.compare.runner")
    assert callable(modelopt_nb.quantize) and callable(modelopt_nb.compare)
