"""Compare variants of a model: what is measured (`variants`), how (`runner`), and how it is shown (`table`, `results`)."""
