"""The public names; lazy_loader reads this file, and so do type checkers and editors."""

from .checkpoints.atomic_folder import atomic_folder as atomic_folder
from .checkpoints.manifest import CheckpointError as CheckpointError
from .config.activations import ACTIVATION_SCALES as ACTIVATION_SCALES
from .config.config import ModelOptConfig as ModelOptConfig, make_config as make_config
from .config.patterns import as_patterns as as_patterns, matching_layers as matching_layers
from .config.quant_types import QUANT_TYPES as QUANT_TYPES, QuantType as QuantType
from .config.schemes import SCHEMES as SCHEMES
from .config.weight_layout import WeightLayout as WeightLayout
from .lab.calibration.loops import denoising_loop as denoising_loop, replay_loop as replay_loop
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
from .lab.export import export as export
from .lab.layers.kinds import KINDS as KINDS
from .lab.layers.select import layer_frame as layer_frame, select as select
from .lab.pipelines.generate import generate as generate
from .lab.pipelines.load import load_pipeline as load_pipeline
from .lab.pipelines.prompts import load_prompts as load_prompts
from .lab.plots.formats import plot_errors as plot_errors, plot_format as plot_format
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
from .lab.quality.classifier import classify as classify, load_classifier as load_classifier
from .lab.quality.metrics import clip_score as clip_score, lpips as lpips, psnr as psnr, ssim as ssim
from .lab.quality.weights import representable_values as representable_values, weight_errors as weight_errors
from .lab.search.algorithms import (
    ALGORITHMS as ALGORITHMS,
    algorithm_table as algorithm_table,
    check_scheme as check_scheme,
)
from .lab.search.bit_allocation import Budget as Budget, fit_budget as fit_budget
from .lab.search.code import config_code as config_code
from .lab.search.groups import layer_groups as layer_groups
from .lab.search.sensitivity import sensitivity as sensitivity
from .lab.widgets.blind_test import BlindTest as BlindTest
from .lab.widgets.explorer import Explorer as Explorer
from .lab.widgets.workbench import Choice as Choice
from .memory.peak import PeakMemory as PeakMemory, peak_memory as peak_memory, tensor_memory as tensor_memory
from .memory.weight_bytes import MIB as MIB, WeightBytes as WeightBytes, weight_bytes as weight_bytes
from .packing.calibrate import NEED_LOOP as NEED_LOOP, check_algorithm as check_algorithm, check_config as check_config
from .packing.input_amax import input_amax as input_amax
from .packing.plan import LayerPlan as LayerPlan, Plan as Plan, plan as plan
from .packing.report import Report as Report
from .upstream.layers import LayerRow as LayerRow, ModelRows as ModelRows, describe_layers as describe_layers
from .upstream.packed_weights import dequantized as dequantized, round_weight as round_weight
from .upstream.quiet import quiet as quiet
from .upstream.tools import auto_quantize_scores as auto_quantize_scores, export_quantized as export_quantized
from .verbs import enable as enable, quantize as quantize, repair_states as repair_states
