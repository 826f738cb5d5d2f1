"""What an attention mask means, proven from how it is built."""
