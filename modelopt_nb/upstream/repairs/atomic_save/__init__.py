"""Save packed models atomically, and verify them on load."""
