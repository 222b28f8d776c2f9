"""Pictures of the factory and of its labels: for the web GUI, for one self-contained page, and as PNG."""
