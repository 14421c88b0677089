"""Plan, calibrate, report: what packing does to a model."""
