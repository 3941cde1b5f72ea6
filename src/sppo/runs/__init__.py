"""A run on the disk: its folder, checkpoints, seeds, progress and sinks."""
