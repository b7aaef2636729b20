"""What came out? Results, their statistics and their pictures."""
