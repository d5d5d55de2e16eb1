"""What is known of a spectrum: single eigenvalues, a trace, a density. No torch."""
