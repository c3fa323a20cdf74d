"""Who is calling: principals and the API keys that prove them. Not: what they may do."""
