"""Rollouts: prompts in, responses with token ids and log-probabilities out."""
