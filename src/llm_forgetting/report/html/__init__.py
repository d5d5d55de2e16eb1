"""Reports as one HTML file that needs nothing else: no network, no server, no fonts. From artifacts alone."""
