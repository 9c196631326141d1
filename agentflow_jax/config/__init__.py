"""What a run is: its fields, how flags override them, and what is refused."""
