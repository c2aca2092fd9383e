"""SFT with TRL, exact and shared over a batch's common prompt."""
