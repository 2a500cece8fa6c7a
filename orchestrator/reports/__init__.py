"""What reports are made of: tables, pages and figures; and the general report of any sweep."""
