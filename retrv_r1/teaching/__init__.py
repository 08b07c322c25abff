"""Chains of thought that another model writes, over any endpoint that speaks OpenAI's protocol."""
