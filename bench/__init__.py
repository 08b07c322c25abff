"""Benchmarks, run from the checkout's root: ``python -m bench.run --suite kernels``."""
