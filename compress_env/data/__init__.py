"""Where do images come from? Bundles of four image sets, their sources, names and augmentation."""
