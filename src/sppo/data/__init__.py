"""Data: tasks, prompts and the order in which they come."""
