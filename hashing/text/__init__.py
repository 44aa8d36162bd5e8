"""Embed texts with a learned tower (torch): for commands that train and the embedder's own process."""
