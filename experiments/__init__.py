"""What does it come to? One room for each question, most of them run as `compress-env NAME`."""
