"""Plan, calibrate, pack, report."""
