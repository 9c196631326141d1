"""The tool search: passages of a corpus, by words and by meaning."""
