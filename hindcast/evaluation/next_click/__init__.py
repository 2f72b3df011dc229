"""Next click of held-out sessions: files, what is learned, answers and their figures."""
