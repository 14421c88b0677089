"""The public names; lazy_loader reads this file, and so do type checkers and editors."""

from .config import (
    ACTIVATION_SCALES as ACTIVATION_SCALES,
    QUANT_TYPES as QUANT_TYPES,
    SCHEMES as SCHEMES,
    config_code as config_code,
    make_config as make_config,
)
from ._bridge import (
    LayerPlan as LayerPlan,
    MIB as MIB,
    ModelOptConfig as ModelOptConfig,
    NEED_LOOP as NEED_LOOP,
    PeakMemory as PeakMemory,
    Plan as Plan,
    WeightLayout as WeightLayout,
    as_patterns as as_patterns,
    auto_quantize_scores as auto_quantize_scores,
    check_algorithm as check_algorithm,
    check_config as check_config,
    input_amax as input_amax,
    matching_layers as matching_layers,
    plan as plan,
    quiet as quiet,
    repair_states as repair_states,
    round_weight as round_weight,
    tensor_memory as tensor_memory,
)
from .selection import (
    KINDS as KINDS,
    layer_frame as layer_frame,
    select as select,
)
from .quantization import (
    Report as Report,
    dequantized as dequantized,
    quantize as quantize,
)
from .upstream import enable as enable
from .memory import (
    WeightBytes as WeightBytes,
    peak_memory as peak_memory,
    weight_bytes as weight_bytes,
)
from .deployment import export as export
from .saving import CheckpointError as CheckpointError
from .lab.calibration.loops import (
    denoising_loop as denoising_loop,
    replay_loop as replay_loop,
)
from .lab.calibration.model_calls import (
    ModelCall as ModelCall,
    load_calls as load_calls,
    record_calls as record_calls,
    save_calls as save_calls,
)
from .lab.calibration.ranges import activation_ranges as activation_ranges
from .lab.cli import doctor as doctor
from .lab.compare.results import Comparison as Comparison
from .lab.compare.runner import compare as compare
from .lab.compare.variants import Variant as Variant
from .lab.pipelines.generate import generate as generate
from .lab.pipelines.load import load_pipeline as load_pipeline
from .lab.pipelines.prompts import load_prompts as load_prompts
from .lab.plots.formats import (
    plot_errors as plot_errors,
    plot_format as plot_format,
)
from .lab.plots.layers import (
    plot_layers as plot_layers,
    plot_ranges as plot_ranges,
    plot_sensitivity as plot_sensitivity,
)
from .lab.plots.pictures import (
    plot_difference as plot_difference,
    plot_grid as plot_grid,
    plot_pictures as plot_pictures,
)
from .lab.plots.quality import (
    plot_frontier as plot_frontier,
    plot_quality as plot_quality,
    plot_schemes as plot_schemes,
)
from .lab.quality.classifier import (
    classify as classify,
    load_classifier as load_classifier,
)
from .lab.quality.metrics import (
    clip_score as clip_score,
    lpips as lpips,
    psnr as psnr,
    ssim as ssim,
)
from .lab.quality.weights import (
    representable_values as representable_values,
    weight_errors as weight_errors,
)
from .lab.search.algorithms import (
    ALGORITHMS as ALGORITHMS,
    algorithm_table as algorithm_table,
    check_scheme as check_scheme,
)
from .lab.search.bit_allocation import (
    Budget as Budget,
    fit_budget as fit_budget,
)
from .lab.search.groups import layer_groups as layer_groups
from .lab.search.sensitivity import sensitivity as sensitivity
from .lab.widgets.blind_test import BlindTest as BlindTest
from .lab.widgets.explorer import Explorer as Explorer
from .lab.widgets.workbench import Choice as Choice
