"""The protocol of a federation, the engines that carry it out, and its checkpoints."""
