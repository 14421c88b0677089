"""Record a model's calls (`model_calls`), replay them (`loops`), measure activation ranges (`ranges`)."""
