"""Building blocks shared by every model: linear maps, norms, attention, positions."""
