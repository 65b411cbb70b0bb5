"""Experiments: one room per question, each run as `compress-env NAME`."""
