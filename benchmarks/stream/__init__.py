"""Learning from a stream, against baselines, at equal cost and memory. See `__main__`."""
