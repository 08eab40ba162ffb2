"""The coordinator: aggregation, rounds, checkpoints, report."""
