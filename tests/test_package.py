import subprocess
import sys

import modelopt_nb


def test_import_is_light():
    code = (
        "import sys, modelopt_nb; heavy = {'torch', 'diffusers', 'modelopt', 'pandas', 'matplotlib', 'numpy', "
        "'transformers', 'skimage'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented():
    for name in modelopt_nb.__all__:
        value = getattr(modelopt_nb, name)
        assert name in ("QUANT_TYPES", "__version__") or value.__doc__, name


def test_importing_a_module_does_not_hide_a_verb():
    import modelopt_nb.comparison
    import modelopt_nb.quantization  # noqa: F401

    assert callable(modelopt_nb.quantize)
    assert callable(modelopt_nb.compare)
