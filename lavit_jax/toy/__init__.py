"""The toy world: scenes, digits, their texts, and everything that reads them back."""
