"""Training the meta-networks by the inpainting loss after a look-ahead step."""
