"""Edge-probing tasks from files of many formats."""
