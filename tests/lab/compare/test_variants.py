"""What can be compared is checked before any work."""

import pytest
import torch

from modelopt_nb import make_config
from modelopt_nb.lab.compare.variants import check_config


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can round them")
def test_a_configuration_is_checked_before_any_work(transformer):
    with pytest.raises(ValueError, match="algorithm='awq_lite' needs a forward_loop"):
        check_config(transformer, make_config("INT4", algorithm="awq_lite"))
    with pytest.raises(ValueError, match=r"quant_type='NVFP4_NVFP4' has activations that cannot be rounded on cpu: "):
        check_config(transformer, make_config("NVFP4_NVFP4"))
    with pytest.raises(ValueError, match="static activation scales need a forward_loop"):
        check_config(transformer, make_config("NVFP4_INT8"))
    check_config(transformer, make_config("NVFP4_INT8", forward_loop=print))
    check_config(transformer, make_config("NVFP4_INT8", activation_scale="dynamic tensor"))
