"""Answers of mathematics: found, read and compared."""
