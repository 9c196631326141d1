"""Tools: a card that says what for, and an async call."""
