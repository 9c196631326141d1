"""Many rollouts at once, their files, and what they add up to."""
