"""How is a network trained by its recipe? It stops after any epoch and goes on later."""
