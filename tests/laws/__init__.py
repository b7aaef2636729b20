"""What every function obeys, whatever it measures."""
