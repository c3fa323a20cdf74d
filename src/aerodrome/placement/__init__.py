"""Which of several runtimes gets a session, as pure functions over what the caller knows of them."""
