"""How frames come in: one kind of source a file, over one base."""
