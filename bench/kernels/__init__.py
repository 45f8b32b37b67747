"""Benches of one rank: kernels and local accesses, next to NumPy and PyTorch."""
