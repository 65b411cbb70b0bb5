"""How few bits will do? Fake quantization while training; packed files and exports afterwards."""
