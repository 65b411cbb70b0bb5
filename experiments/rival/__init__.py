"""What does one pruner, rule or search make of one network, at one budget and from one seed?"""
