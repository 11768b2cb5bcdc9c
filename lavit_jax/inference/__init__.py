"""Class LaVIT, the frozen parts it is made of, and requests to it."""
