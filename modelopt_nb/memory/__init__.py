"""What a model costs: bytes of its weights, and the peak memory while code runs."""
