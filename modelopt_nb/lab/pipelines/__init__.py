"""Load a pipeline (`load`), read its prompts (`prompts`), generate images with it (`generate`)."""
