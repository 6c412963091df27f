"""What the figures show: one function a figure, from a workbench to a finished drawing with its numbers."""
