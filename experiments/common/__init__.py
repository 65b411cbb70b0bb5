"""What do all experiments share? Run folders, commands, progress, intervals and figures."""
