"""Rankings in, numbers out: metrics, and the protocols that combine them."""
