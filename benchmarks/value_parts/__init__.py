"""What `benchmarks/value.py` is made of; `plan.py` says what is run, the others how."""
