"""OpenAI-compatible servers as language models: the client and its limits."""
