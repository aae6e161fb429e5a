"""Large groups, simulated: the library's own books, with a network, cores and deaths of given speed around them."""
