"""How long does channel selection by the lasso's path take?"""
