"""What is a channel, a layer or a bit worth? Told by weights, by gradients and by answers."""
