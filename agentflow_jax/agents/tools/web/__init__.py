"""Tools that read the public web."""
