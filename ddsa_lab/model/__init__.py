"""The network: attention -> feed-forward -> blocks -> U shape, its checkpoints, its use and its cost."""
