"""What the stages and the service share, by topic. Nothing in here imports a stage or the service."""
