"""What a stranger's URL may reach, and the proxy that holds it to that."""
