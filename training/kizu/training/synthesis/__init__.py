"""Synthesis stage of a run: train the generator where it trains, sample synthetic NG, filter and store them."""
