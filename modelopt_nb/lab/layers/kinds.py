"""Name the kind of each layer and the block that it is in."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from modelopt_nb import LayerRow

#: Every kind that :func:`modelopt_nb.layer_frame` distinguishes.
KINDS = (
    *(f"{where}{part}" for where in ("attention ", "cross-attention ") for part in ("q", "k", "v", "qkv", "out")),
    *("feed-forward", "pointwise convolution", "convolution", "embedding", "modulation", "output projection", "other"),
)
_ATTENTION = {
    "q": r"(to_q|add_q_proj|q_proj|query|q)",
    "k": r"(to_k|add_k_proj|k_proj|key|k)",
    "v": r"(to_v|add_v_proj|v_proj|value|v)",
    "qkv": r"(to_qkv|to_kv|to_added_qkv|qkv)",
    "out": r"(to_out(\.\d+)?|to_add_out|add_out|out_proj|o)",
}
_EMBEDDING = (
    r"embed|(caption|text)_projection|adaln_single\.emb|^(proj|conv)_in$|^(timestep|global|cross_attention)_proj"
)
_MODULATION = r"modulation|(adaln_single|time_embed|(^|\.)norm\w*)\.linear|time_emb_proj|ada_?norm|embedder\.time_proj"
_FEED_FORWARD = r"(^|\.)(ff\w*|mlp|ffn|feed_forward|DenseReluDense|proj_mlp)(\.|$)"
_BLOCK = re.compile(r"((?:[a-z]\w*\.)*?(?:(?:\w*blocks|layers?|block)\.\d+|mid_block))\.")


def layer_kind(row: LayerRow, modules: Mapping[str, nn.Module]) -> str:
    """Return the kind of one layer, from its name in Diffusers or Transformers and from the module that holds it."""
    name, inside = row.name, _BLOCK.match(row.name) is not None
    *outer, last = name.split(".")
    if last.isdecimal() and outer and not outer[-1].isdecimal():
        last = f"{outer[-1]}.{last}"  # with an index that follows it: to_out.0
    convolution = "pointwise convolution" if row.is_pointwise else "convolution"
    if row.is_convolution and inside:
        return convolution
    parent = modules[name.removesuffix(last).rstrip(".")]
    if "ttention" in type(parent).__name__ or re.search(r"attn|attention", name):
        for part, pattern in _ATTENTION.items():
            if re.fullmatch(pattern, last):
                crossed = getattr(parent, "is_cross_attention", re.search("attn2|cross|EncDec", name))
                return f"{'cross-' if crossed else ''}attention {part}"
    if re.search(_MODULATION, name):
        return "modulation"
    if re.search(_EMBEDDING, name):
        return "embedding"
    if re.search(_FEED_FORWARD, name) or (last == "proj_out" and hasattr(parent, "proj_mlp")):
        return "feed-forward"
    if not inside and re.fullmatch(r"proj_out\w*|conv_out|final_layer\w*|lm_head", last):
        return "output projection"
    return convolution if row.is_convolution else "other"


def layer_blocks(names: Iterable[str]) -> dict[str, int]:
    """Return the index of the block that each layer is in, counted in the order of the forward pass."""
    found = {name: match.group(1) for name in names if (match := _BLOCK.match(name))}
    order = {block: i for i, block in enumerate(dict.fromkeys(found.values()))}
    parts = list(dict.fromkeys(block.split(".")[0] for block in order if block.split(".")[0] in ("encoder", "decoder")))

    def place(block: str) -> tuple[int, int, int]:  # a UNet names its middle last
        first, depth = block.split(".")[0], 1 if "mid_block" in block else 2 if "up_blocks" in block else 0
        return (parts.index(first) if first in parts else -1, depth, order[block])

    numbers = {block: i for i, block in enumerate(sorted(order, key=place))}
    return {name: numbers[block] for name, block in found.items()}
