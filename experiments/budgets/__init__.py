"""Does one policy serve several budgets of the same network?"""
