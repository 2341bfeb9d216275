"""A sweep as one page and one picture. The only door to plotly."""
