"""Which prompt a teacher is asked with: gold rows decide."""
