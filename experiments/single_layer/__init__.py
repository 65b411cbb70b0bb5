"""What does removing a part of one layer cost, method by method?"""
