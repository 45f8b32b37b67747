"""What every layer above stands on: errors, atomics on plain memory, system calls. Imports nothing of intentpm."""
