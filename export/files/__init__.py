"""What lies beside the weights: card, manifest, sums, `io.json`, `genai_config.json`; and whether they are true."""
