"""Compression of one layer by removing channels and elements."""
