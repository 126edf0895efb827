"""Shows generators in a browser: the logic of view.py. Only `page.py` knows the package that serves the page."""
