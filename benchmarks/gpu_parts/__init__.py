"""What `benchmarks/gpu.py` is made of: `bench.py` has sizes, clocks and runs, the others one part or a few each."""
