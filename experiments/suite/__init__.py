"""What do the deep tasks of the suite come to without learning?"""
