"""How is one layer pruned, and what does that save? Methods, elements, plans and costs."""
