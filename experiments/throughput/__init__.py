"""What does a step cost beyond its training and scoring?"""
