"""The network: T5 of every shape, its first weights, its files, and how it answers. Needs torch."""
