"""Tools that make and check data sets before training."""
