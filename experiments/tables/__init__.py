"""What do runs from several seeds come to together?"""
