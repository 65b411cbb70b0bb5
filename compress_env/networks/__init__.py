"""Builders of named networks: (num_classes, image_shape) -> network with random weights."""
