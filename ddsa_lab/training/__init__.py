"""Training: settings, the loop, its run folders, and studies of many runs."""
