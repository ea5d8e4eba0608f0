"""The made world: scenes, their pictures and the questions about them."""
