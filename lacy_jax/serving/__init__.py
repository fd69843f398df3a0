"""`lacy serve`: the cascade behind an OpenAI-compatible endpoint, and a page to watch it call."""
