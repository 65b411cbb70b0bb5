"""How do pruners, rules and searches compare on one network at equal budgets and fine-tuning?"""
