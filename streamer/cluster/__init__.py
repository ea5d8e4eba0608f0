"""A fleet: streams placed over many engines, and moved without losing what they know."""
