"""Which hyper-parameters suit an agent?"""
