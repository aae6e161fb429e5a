"""Programs that use the library: the command line, demo, doctor, benchmarks and soak. Nothing in it imports them."""
