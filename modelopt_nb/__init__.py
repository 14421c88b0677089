"""Quantize diffusion models with NVIDIA ModelOpt in Jupyter, and see what it does to the images.

The helper: ``config``, ``packing``, ``memory``, ``upstream``, ``verbs``. The laboratory, for notebooks: ``lab``.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
