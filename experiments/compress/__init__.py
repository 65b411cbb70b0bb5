"""What does the whole job come to? Prune, quantize, fine-tune, export and report."""
