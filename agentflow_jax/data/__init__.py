"""Task sets, tokenizers and chat templates."""
