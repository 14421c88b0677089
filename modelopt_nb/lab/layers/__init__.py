"""Which layers: their kinds, and selecting among them."""
