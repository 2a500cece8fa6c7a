"""Building blocks of reports (tables, pages and figures), and the general report of any sweep."""
