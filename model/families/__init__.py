"""Model families: a configuration, a tower, a layer recipe, tensor names and a prompt each."""
