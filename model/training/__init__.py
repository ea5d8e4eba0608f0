"""How the nano is made: lessons drawn from the made world, and the program that trains on them."""
