"""Adapt ModelOpt to the kit: the only package that imports it. It knows nothing of quant types or checkpoints."""
