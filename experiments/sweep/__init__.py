"""How are many runs worked on at once? Cells, pools of processes, and the folder of a sweep."""
