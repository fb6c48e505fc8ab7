"""What is made ahead of time for one kind of device: engines, packed weights, and what stages take there."""
