"""What clients and servers do against attacks, one defence a file."""
