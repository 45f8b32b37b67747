"""intentpm: an adaptive, zero-tuning parameter manager for distributed training of sparse models."""
