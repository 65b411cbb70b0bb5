"""Which agent is best? Trials on the suite, leaderboards, and their verification."""
