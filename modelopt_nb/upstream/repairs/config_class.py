"""Build the kit's configuration where ``NVIDIAModelOptConfig(...)`` is called."""

import functools
import logging
from typing import Any

from diffusers.quantizers.quantization_config import NVIDIAModelOptConfig

from modelopt_nb.upstream.repairs.base import Patch, Repair


class ConfigClass(Repair):
    """Let ``NVIDIAModelOptConfig(...)`` become its subclass ``config_class``, which the installed ModelOpt can use.

    The subclass refuses wrong arguments, gives 4-bit types a block, and writes and reads JSON. It is ``lenient`` then: it
    warns where Diffusers' documented examples would be refused.
    """

    name = "config-class"
    broken = (
        "get_config_from_quant_type spreads a list into a dict and gives 4-bit types no block; an unknown type becomes "
        "FP8 with a log line; block_sizes has keys of two types, which JSON cannot sort"
    )
    versions = "diffusers 0.42.1 and earlier with nvidia-modelopt 0.44 and later"
    issue = "https://github.com/huggingface/diffusers/pull/14536, https://github.com/NVIDIA/Model-Optimizer/issues/2001"

    def __init__(self, config_class: type[NVIDIAModelOptConfig]) -> None:
        self.config_class = config_class

    def needed(self) -> bool:
        log = logging.getLogger("diffusers.quantizers.quantization_config")
        before, log.disabled = log.disabled, True
        try:
            config = NVIDIAModelOptConfig("NVFP4")
            config.to_json_string(use_diff=False)
            entries = [e for e in config.modelopt_config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer"]
            if not all(entry["cfg"].get("block_sizes") for entry in entries):
                return True
            NVIDIAModelOptConfig("FP4")
        except TypeError:
            return True
        except ValueError:
            return False
        finally:
            log.disabled = before
        return True

    def patches(self) -> list[Patch]:
        original, config_class = NVIDIAModelOptConfig.__init__, self.config_class

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is NVIDIAModelOptConfig:
                self.__class__, self.lenient = config_class, True
            self.__init__(*args, **kwargs) if isinstance(self, config_class) else original(self, *args, **kwargs)

        return [(NVIDIAModelOptConfig, "__init__", __init__)]
