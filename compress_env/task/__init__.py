"""What is compressed, and how is the result judged? The task, fine-tuning, costs and rewards."""
