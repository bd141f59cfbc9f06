"""Was this example in the target client's data? One paper's attack, one file; higher scores say member."""
