"""Task sets: GeoHop, benchmarks, mixtures, and rows of a file."""
