"""Search: which layers are sensitive, which scheme each should have, which algorithms run."""
