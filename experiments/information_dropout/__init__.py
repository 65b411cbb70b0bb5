"""What does information dropout pass on?"""
