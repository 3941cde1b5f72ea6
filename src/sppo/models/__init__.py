"""Models: loading, layouts, log-probabilities in chunks, the prompt critic."""
