"""A Flower app as one writes it: nothing in it knows that anybody listens."""
