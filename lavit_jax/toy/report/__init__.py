"""The quickstart's report: figures, pictures and facts on one self-contained page."""
