"""Session files, fenced by epoch, and what can be read out of them. Not: who may read them."""
