"""Linear probes on edited tokens: variants, heads, metrics, results."""
