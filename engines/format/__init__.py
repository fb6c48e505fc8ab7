"""The bundle format: what a reader in any language needs to know of a bundle."""
