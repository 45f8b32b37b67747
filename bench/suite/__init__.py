"""The benchmark suite: parts that measure, the runner that repeats them, and the table of targets."""
