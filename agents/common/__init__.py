"""What do all agents share? Checked arguments and spaces, losses, and others' optimizers."""
