"""People look at rows that the teacher may have labelled wrongly, in a browser."""
