"""Benches over several ranks, started by ``intentpm.bench.runner``."""
