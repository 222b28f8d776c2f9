"""What the factory is doing: read from the LaunchPad and shown on a terminal; nothing here writes to it."""
