"""The small models that the repository bundles: their data, training, evaluation and cards."""
