"""What a run is made of, whatever it trains: loop, state, checkpoints and feed."""
