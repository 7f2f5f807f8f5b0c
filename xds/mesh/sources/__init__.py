"""Where facts come from; every source yields the same changes."""
