"""Benchmarks, training tasks and the plots drawn from them."""
