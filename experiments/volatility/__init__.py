"""Is the reward of PPO less volatile than DDPG's?"""
