"""Training tasks, and the parts they share: look-ahead loading, sums over ranks, progress and results."""
