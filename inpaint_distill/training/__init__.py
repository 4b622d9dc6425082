"""Data, masks, metrics, the loop and the study behind the command line; never imported by the plug itself."""
