"""Evaluation: held-out accuracy during training, published benchmarks, and what their numbers are worth."""
