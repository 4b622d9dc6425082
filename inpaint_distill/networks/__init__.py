"""What the distiller adds to a host while it trains."""
