"""Is importance the same early in training as at its end?"""
