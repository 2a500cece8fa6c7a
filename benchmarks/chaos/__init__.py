"""Parts of `chaos_campaign.py`: where a sweep runs, what strikes it, and what it is judged by."""
