"""How are rows shown? Intervals, figures, reports and tables."""
