"""Which networks have names? Builders, recipes, checkpoints, and the baselines that are shipped."""
