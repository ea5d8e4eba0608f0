"""Frames and text through InfiniteVL: the model, its streaming state and what runs them."""
