"""Plots: images side by side, quality, layers, number formats."""
