"""How does a command read its line, and tell how far it is?"""
