"""What you can ask for: quant types, schemes, and the configuration that each becomes."""
