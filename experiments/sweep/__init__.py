"""How are many runs worked on at once? Cells, pools of processes, and their folder."""
