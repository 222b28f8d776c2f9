"""Labels of DFT that can be trusted."""
