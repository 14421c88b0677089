"""modelopt_nb: quantize diffusion models with NVIDIA ModelOpt in Jupyter, and see what it does to the images.

The helper: ``config`` (what you can ask for), ``packing`` (done to the model), ``memory`` (what it costs), ``upstream``
(how ModelOpt takes it, and repairs) and ``verbs``. The laboratory, ``lab``, is what the notebooks stand on.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
