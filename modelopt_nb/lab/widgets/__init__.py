"""Look by hand: images (`workbench`, `tiles`) of a `request` of `choices`; `explorer` and `blind_test`."""
