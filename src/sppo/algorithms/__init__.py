"""Algorithms: pure functions from rewards and estimates to credit, their losses, and one table of them."""
