"""FireWorks' web GUI with our pages beside its own: `dftfactory webgui`."""
