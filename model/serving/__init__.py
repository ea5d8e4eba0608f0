"""What runs a model fast: runner, graphs, traces, quantised products and their measurement."""
