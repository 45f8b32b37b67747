"""GPU shard storage behind the storage interface of the host store."""
