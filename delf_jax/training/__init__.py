"""What a training step is made of: losses, optimisers, the pure step."""
