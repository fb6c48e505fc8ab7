"""foveate beside the tools a user would pick instead: same shapes, same machine, one run."""
