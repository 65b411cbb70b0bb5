"""Quantized weights: fake quantization while training, packed files afterwards."""
