"""How the nano is made: a procedural world, questions about it, and the program that trains on them."""
