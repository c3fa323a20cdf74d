"""What a node says of itself. Not: what its users say."""
