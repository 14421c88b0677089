"""Quant types: one row a number format, with all that packing, saving and loading need to know about it."""

from dataclasses import dataclass
from typing import Literal

#: ModelOpt's name of a format: bits of an integer or look-up table, or (exponent, mantissa) bits of a float.
Bits = int | tuple[int, int]
ScaleShape = Literal["grid", "column", "rows", "row", "scalar"]


@dataclass(frozen=True)
class QuantType:
    """Describe a number format and how ModelOpt packs it. One row of :data:`QUANT_TYPES`.

    Attributes:
        num_bits: ModelOpt's name, which identifies the type together with ``scale_bits``.
        bits, stored: Bits of one packed weight, and the dtype it is stored in. 4-bit types store two weights in a byte.
        qtensor: Class in ``modelopt.torch.quantization.qtensor`` that reads the packed weight.
        scales: Buffers of the quantizer: name, shape (see :class:`WeightLayout`), dtype or None for the weight's
            (float32 for float16).
        block: Block size in weights if none is asked for; None if the type needs no blocks.
        scale_bits, scale_block: Format of the block scales (None: the weight's dtype); size of the scales' own blocks.
        dynamic_block, flat: Whether block scales are computed while packing; whether the packed weight is stored flat.
        activations, exportable: Whether activations can have this type, and whether ModelOpt's exporter writes it.
    """

    name: str
    num_bits: Bits
    bits: int
    stored: str
    qtensor: str
    scales: tuple[tuple[str, ScaleShape, str | None], ...] = (("_scale", "grid", None),)
    block: int | None = None
    scale_bits: Bits | None = None
    scale_block: int | None = None
    dynamic_block: bool = False
    flat: bool = False
    activations: bool = False
    exportable: bool = True

    @property
    def needs_block(self) -> bool:
        """Whether ModelOpt can pack the type only in blocks."""
        return self.block is not None


_NF4_SCALES = (("_scale", "rows", "int8"), ("_double_scale", "row", None), ("_scale_zeros", "scalar", None))
_NVFP4_SCALES = (("_scale", "grid", "float8_e4m3fn"), ("_double_scale", "scalar", "float32"))
_ROWS = (
    QuantType("FP8", (4, 3), 8, "float8_e4m3fn", "FP8QTensor", activations=True),
    QuantType("INT8", 8, 8, "int8", "INT8QTensor", activations=True),
    # ModelOpt's own block: modelopt_recipes configs/numerics/int4_per_block.yaml
    QuantType("INT4", 4, 4, "uint8", "INT4QTensor", (("_scale", "column", None),), block=128),
    # ModelOpt has no NF4 preset today; 64 and 256 are QLoRA's (arXiv 2305.14314) and its former default
    QuantType("NF4", 4, 4, "uint8", "NF4QTensor", _NF4_SCALES, 64, 8, 256, flat=True, exportable=False),
    # modelopt_recipes configs/numerics/nvfp4.yaml
    QuantType(
        "NVFP4", (2, 1), 4, "uint8", "NVFP4QTensor", _NVFP4_SCALES, 16, (4, 3), dynamic_block=True, activations=True
    ),
)
QUANT_TYPES: dict[str, QuantType] = {row.name: row for row in _ROWS}


def split_quant_type(quant_type: str) -> tuple[QuantType, QuantType | None]:
    """Return the rows of ``"FP8"``, or of ``"FP8_INT8"``: weights, then activations.

    Raises TypeError for what is no string, ValueError for an unknown type.
    """
    if not isinstance(quant_type, str):
        raise TypeError(f"quant_type must be a string such as 'FP8', not {quant_type!r}")
    names = quant_type.split("_")
    for name in names:
        if name not in QUANT_TYPES or len(names) > 2:
            part = f" ({name!r} in it)" if len(names) > 1 and name not in QUANT_TYPES else ""
            known = f"{', '.join(QUANT_TYPES)}, or weights and activations as in 'FP8_INT8'"
            raise ValueError(f"quant_type={quant_type!r}{part} is not known. Allowed: {known}")
    return QUANT_TYPES[names[0]], QUANT_TYPES[names[1]] if len(names) == 2 else None
