"""A packed model on disk: safetensors and JSON, saved atomically, verified on load.

``from_pretrained(..., quantization_config=config)`` and ``from_pretrained(packed_folder)`` go through these steps:

1. The library reads the configuration and creates the quantizer of this package.
2. It creates the model on the meta device. The quantizer verifies a packed checkpoint against its manifest, plans which
   layers to pack (:class:`Packer`), inserts ModelOpt's quantizers and prepares layers for packed tensors.
3. It reads the weights one by one. Each dense weight is packed as it arrives, so the whole dense model is never in memory;
   with a forward loop all wait for step 4. Each packed tensor is put in place unchanged.
4. The quantizer calibrates if there is a forward loop, packs what waited, and measures the report.
"""
