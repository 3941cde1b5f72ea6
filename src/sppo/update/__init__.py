"""Updates: what is read before them, the policy's own, fine-tuning, and ranks."""
