"""Does pruning by importance help?"""
