"""Measure images (`metrics`, `classifier`) and weights (`weights`); confidence intervals and tests (`statistics`)."""
