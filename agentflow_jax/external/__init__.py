"""The policy sampled by servers of vLLM or SGLang, with proof of what sampled."""
