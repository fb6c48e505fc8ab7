"""The machine underneath: files, folders, locks, CPU, memory, and packages that may be missing."""
