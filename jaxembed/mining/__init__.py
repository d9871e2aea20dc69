"""Hard-negative mining: candidates found once, rules applied as often as one likes."""
