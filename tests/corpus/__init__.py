"""The corpus: nodes that fail in every known way, and nodes that are well and noisy, made by a seeded generator."""
