"""What can an agent be shown, paid or asked beyond the environment itself?"""
