"""What does one agent find on one task from one seed?"""
