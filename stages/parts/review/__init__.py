"""What people are asked to look at, and in which order."""
