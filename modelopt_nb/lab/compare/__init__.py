"""Compare variants of a model: configurations (`variants`), measurement (`runner`), table (`columns`, `results`)."""
