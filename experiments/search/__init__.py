"""How does an agent search? Episodes, agents by name, policies, and going on after a stop."""
