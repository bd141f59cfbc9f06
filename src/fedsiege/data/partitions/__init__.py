"""How training examples are dealt to clients: one file per scheme, most of them thin over flwr-datasets."""
