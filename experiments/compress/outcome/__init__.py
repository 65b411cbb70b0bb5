"""What came of the job? Networks scored, exported and timed, the rows of its table, its page."""
