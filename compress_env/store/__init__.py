"""What is known already? Results of steps, networks to start from, and names of tasks."""
