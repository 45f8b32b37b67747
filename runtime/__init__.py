"""Parameter manager: tables, workers, the local store, and the engine that serves them."""
