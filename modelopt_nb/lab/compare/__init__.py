"""Compare variants of a model: what is measured (`variants`), how (`runner`), how it is shown (`table`, `results`)."""
