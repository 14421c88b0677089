"""Pack each layer as its weight arrives, in Diffusers and Transformers."""
