"""The laboratory, which the notebooks stand on. It needs the packages of the extra ``lab``."""

from importlib.util import find_spec

#: Packages of the extra ``lab`` that the laboratory imports.
NEEDED = ("anywidget", "matplotlib", "pandas", "scipy", "skimage", "tqdm", "transformers")

if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise ImportError(f'modelopt_nb.lab needs {", ".join(missing)}: pip install "modelopt-nb[lab]"')
