"""Which channels belong together, and can they go? Tracing, groups, checks and surgery."""
