"""How does one agent learn one Gymnasium task?"""
