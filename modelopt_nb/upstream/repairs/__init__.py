"""Repairs of ModelOpt and Diffusers: one file each, switched on by ``modelopt_nb.enable()``.

Each says what is broken, in which versions and where upstream discusses it. Its probe, ``needed``, tries the installed
release, so a repair steps aside once upstream is fixed. Nothing is edited on disk.
"""

from modelopt_nb.upstream.repairs.atomic_save.repair import AtomicSave
from modelopt_nb.upstream.repairs.base import Repair
from modelopt_nb.upstream.repairs.calibrated_scales import CalibratedScales
from modelopt_nb.upstream.repairs.config_class import ConfigClass
from modelopt_nb.upstream.repairs.histogram_mse import HistogramMse
from modelopt_nb.upstream.repairs.nf4_read_back import Nf4ReadBack
from modelopt_nb.upstream.repairs.nf4_rounding import Nf4Rounding
from modelopt_nb.upstream.repairs.nvfp4_rounding import Nvfp4Rounding
from modelopt_nb.upstream.repairs.pack_while_loading.repair import PackWhileLoading, model_classes
from modelopt_nb.upstream.repairs.packed_modules import PackedModules
from modelopt_nb.upstream.repairs.restore_from_config import RestoreFromConfig
from modelopt_nb.upstream.repairs.zeros import Zeros

__all__ = [
    "AtomicSave",
    "CalibratedScales",
    "ConfigClass",
    "HistogramMse",
    "Nf4ReadBack",
    "Nf4Rounding",
    "Nvfp4Rounding",
    "PackWhileLoading",
    "PackedModules",
    "Repair",
    "RestoreFromConfig",
    "Zeros",
    "model_classes",
]
