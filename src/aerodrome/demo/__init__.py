"""A scripted model server and the guided tour, so that everything runs without network and keys."""
