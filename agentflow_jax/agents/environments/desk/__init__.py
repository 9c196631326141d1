"""The bundled domain: a desk that lends and repairs equipment."""
