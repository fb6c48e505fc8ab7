"""What runs graphs. Each backend is one module, loaded when it is asked for."""
