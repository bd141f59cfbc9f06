"""Speed and memory as ratios against plain references, measured in one process."""
