"""How small can a file get without losing accuracy?"""
