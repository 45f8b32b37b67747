"""Latencies under pytest-benchmark: ``pytest bench/latency``, alone or as the ranks of a job."""
