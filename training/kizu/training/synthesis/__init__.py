"""The generator's stage of a run: train it where it trains, sample synthetic NG, filter them, and write them down."""
